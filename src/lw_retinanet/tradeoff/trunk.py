"""The trunks of an experiment: the trained detectors that its rows start from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lw_retinanet.config import Config
from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Records
from lw_retinanet.errors import InputError
from lw_retinanet.files import sha256
from lw_retinanet.heads import plan_of
from lw_retinanet.jobs.train import run_training
from lw_retinanet.locks import lock_file
from lw_retinanet.models.head import Head
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.tradeoff.experiment import Experiment
from lw_retinanet.tradeoff.experiment_data import Fold
from lw_retinanet.weights.create import ANCHORS
from lw_retinanet.weights.model_file import LoadedModel, find_model_file, load_model

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trunk:
    """A trained detector, frozen.

    Args:
        file: Its model file.
        loaded: Network and record.
    """

    file: Path
    loaded: LoadedModel

    @property
    def model(self) -> RetinaNet:
        """The network."""
        return self.loaded.model


def open_trunks(experiment: Experiment, records: Records) -> list[Trunk]:
    """Load the trunks that an experiment names; none if it has none or trains its own.

    Raises:
        InputError: if a head is light already, if the classes are not those of the training data, or if the trunks differ in size.
    """
    trunks = [_open(Path(path), experiment, records) for path in experiment.trunks]
    for one in trunks[1:]:
        first, other = (f"{trunk.file} ({_size(trunk)})" for trunk in (trunks[0], one))
        if _size(trunks[0]) != _size(one):
            raise InputError(f"the trunks {first} and {other} are of different sizes; train all of them with one recipe")
        if _shapes(trunks[0]) != _shapes(one) or trunks[0].model.conventions != one.model.conventions:
            raise InputError(f"the trunks {first} and {other} differ in layers or conventions; train all of them with one recipe")
    return trunks


def _open(path: Path, experiment: Experiment, records: Records) -> Trunk:
    file = find_model_file(path)
    loaded = load_model(file)
    plan = loaded.model.head.plan
    if plan.cls or plan.bbox:
        raise InputError(f"trunk {path} has a light head already; start from a detector whose levels share one head")
    theirs, ours = [c.name for c in loaded.record.categories], list(records.class_names)
    if theirs != ours:
        raise InputError(f"trunk {path} has other classes than {experiment.data}; train it there first")
    loaded.model.requires_grad_(False)
    return Trunk(file=file, loaded=loaded)


def _size(trunk: Trunk) -> str:
    rule = trunk.model.conventions.input
    return f"{trunk.loaded.record.backbone}, width {trunk.model.fpn.out_channels}, {rule.size} px"


def _shapes(trunk: Trunk) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in trunk.model.state_dict().items()}


def train_trunk(experiment: Experiment, fold: Fold, folder: Path, *, config: Config, device: torch.device) -> Trunk:
    """Train the trunk of a fold by the recipe of the experiment, or open the one that an earlier call has trained.

    An interrupted training goes on from its last checkpoint. Another process that needs the same trunk waits for it.

    Args:
        experiment: The experiment, which has a recipe for trunks.
        fold: The images to train on and to measure on.
        folder: Folder of the run.
        config: Resolved settings.
        device: Device to train on.
    """
    with lock_file(folder.with_name(f"{folder.name}.lock"), where=f"the folder {folder}", waits=True):
        if not (folder / "metrics.json").is_file():  # written last
            log.info("training the trunk%s", fold.suffix.replace("-", " "))
            resume = (folder / "config.yaml").is_file()
            run_training(config, Path(experiment.data), folder, resume=resume, device=device, opened=(fold.records, fold.held_out))
    return _open(folder, experiment, fold.records)


def fingerprint(trunks: Sequence[Trunk]) -> str:
    """What tells given trunks from others."""
    return " ".join(sha256(trunk.file) for trunk in trunks)


def at_scale(conventions: Conventions, scale: int) -> Conventions:
    """The same conventions, for images whose longer side is ``scale`` pixels."""
    rule = conventions.input.model_copy(update={"resize": "long_side", "size": scale})
    return conventions.model_copy(update={"input": rule})


def with_head(trunk: RetinaNet, config: Config, num_classes: int) -> RetinaNet:
    """A detector of the trunk's backbone and pyramid and a new head, for the input size of the settings."""
    assert config.data.image_size is not None
    conventions = at_scale(trunk.conventions, config.data.image_size)
    anchors = ANCHORS[config.model.anchors]
    if anchors.num_anchors != conventions.anchors.num_anchors:  # otherwise keep the trunk's, which may be rounded as in its framework
        conventions = conventions.model_copy(update={"anchors": anchors})
    torch.manual_seed(config.train.seed)
    head = Head(
        in_channels=trunk.fpn.out_channels,
        num_classes=num_classes,
        num_anchors=conventions.anchors.num_anchors,
        plan=plan_of(config.model.preset),
        init=config.model.init or "fan_in",
    )
    return RetinaNet(backbone=trunk.backbone, fpn=trunk.fpn, head=head, conventions=conventions)
