"""What a training run leaves: its model files, metrics and curves."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lw_retinanet.config import Config
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError, OutputError, WeightsError
from lw_retinanet.evaluation.best_score import score_metrics
from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.files import write_bytes
from lw_retinanet.jobs.detect_together import detect_together
from lw_retinanet.jobs.evaluate import score_into
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.training.checkpoint import checkpoint_files
from lw_retinanet.training.curves import save_curves
from lw_retinanet.training.distributed import World
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.scores import Weights
from lw_retinanet.weights.model_file import SCORED, ModelRecord, load_model, save_model, save_weights

log = logging.getLogger(__name__)


class RunResults:
    """Writes the files of a run.

    ``model.safetensors`` is the run's model. With ``train.evaluate_every`` the weights with the best AP are also in ``best.safetensors``;
    with ``train.keep=best`` they are the run's model, and ``last.safetensors`` has the last ones.

    Args:
        folder: The run folder.
        record: Record of the model before its first step.
        config: Resolved settings.
        source: The data set.
    """

    def __init__(self, folder: RunFolder, record: ModelRecord, config: Config, source: Path) -> None:
        self.folder, self.record, self.config = folder, record, config
        self.title = f"{record.preset} on {source.name}"
        self.notes = {"data": source.name, "settings": portable_settings(config), **record.notes}

    def keep(self, weights: Weights, score: Mapping[str, Any]) -> None:
        """Write the weights that have the best AP so far."""
        save_weights(self.folder.best_file, weights, self._record(score))

    def finish(self, trained: RetinaNet, held_out: Records | None, world: World, *, progress: Progress | None) -> Metrics | None:
        """Write the model, measure it on ``held_out`` and write what was measured; all processes call it.

        Returns:
            The metrics of the run's model, in the first process and with ``held_out``.
        """
        keeps_best = self.config.train.keep == "best"
        last_file = self.folder.last_file if keeps_best else self.folder.model_file
        if world.is_main:
            save_model(last_file, trained, self._record({}))
            self._draw_curves()
        if held_out is None:
            return None
        detector = self._detector(trained, world)
        detections = detect_together(detector, held_out, world, progress=progress)
        metrics = score_metrics(held_out, detections) if world.is_main else None
        is_best = metrics is not None and self._sort_out(trained, last_file, metrics)
        if keeps_best and not world.first(lambda: is_best):
            detector = self._detector(load_model(self.folder.best_file).model.to(world.device), world)
            detections = detect_together(detector, held_out, world, progress=progress)
            metrics = None
        if not world.is_main:
            return None
        if keeps_best:
            write_bytes(self.folder.model_file, self.folder.best_file.read_bytes())
        return score_into(self.folder.path, detector, held_out, detections, metrics=metrics)

    def _sort_out(self, trained: RetinaNet, last_file: Path, metrics: Metrics) -> bool:
        """Write the last weights with their scores, and say which are the best; whether it is they."""
        score = {"step": _last_step(self.folder), "AP": metrics.AP, "best_score": metrics.best_score}
        save_model(last_file, trained, self._record(score))
        if not self.config.train.evaluate_every:
            return True
        best = self._noted_best()
        is_best = best is None or best["AP"] < metrics.AP
        if is_best:
            self.keep(trained.state_dict(), score)
        at, ap = (score["step"], metrics.AP) if best is None or is_best else (best["step"], best["AP"])
        names = ("model.safetensors and best.safetensors hold", f"{last_file.name} holds")
        kept, other = names if self.config.train.keep == "best" else ("best.safetensors holds", names[1])
        log.info(
            "%s the weights of step %d, whose AP of %.4f is the best; %s those of the last step, %d, with %.4f (train.keep=%s)",
            *(kept, at, ap, other, score["step"], metrics.AP, self.config.train.keep),
        )
        return is_best

    def _noted_best(self) -> dict[str, Any] | None:
        """Step and AP of the best evaluation on the way; None if there was none."""
        if not self.folder.best_file.exists():
            return None
        try:
            notes = load_model(self.folder.best_file).record.notes
            return {"step": int(notes["step"]), "AP": float(notes["AP"])}
        except (WeightsError, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be used (%s); the last weights take its place", self.folder.best_file, error)
            return None

    def _detector(self, model: RetinaNet, world: World) -> Detector:
        return Detector.of_model(model, self.record.categories, device=world.device, name=self.title)

    def _record(self, score: Mapping[str, Any]) -> ModelRecord:
        """The record of a model file, whose notes say of which step it is and how it scored."""
        scored = {name: score[name] for name in SCORED if score.get(name) is not None}
        return self.record.model_copy(update={"notes": {**self.notes, **scored}})

    def _draw_curves(self) -> None:
        try:
            save_curves(self.folder.log_file, self.folder.pictures, title=self.title)
        except OutputError:
            raise
        except InputError as error:  # somebody emptied the log of a finished run
            log.warning("no curves are drawn: %s", error)


def portable_settings(config: Config) -> dict[str, Any]:
    """The settings as plain values, with the names of files in place of paths: a model file is given to others."""
    values = config.model_dump(mode="json")
    for section, name in (("model", "start"), ("model", "backbone_weights"), ("train", "teacher")):
        if values[section].get(name) is not None:  # settings without influence are left out
            values[section][name] = Path(values[section][name]).name
    return values


def _last_step(folder: RunFolder) -> int:
    """The step of the newest checkpoint, which a finished training wrote after its last step."""
    return int(checkpoint_files(folder.checkpoints)[-1].stem.removeprefix("step-"))
