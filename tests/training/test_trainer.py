from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lw_retinanet.config import Config
from lw_retinanet.data.records import Records
from lw_retinanet.errors import RunFolderError
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training.checkpoint import Checkpoint
from lw_retinanet.training.distributed import World
from lw_retinanet.training.trainer import Trainer


def test_a_restored_trainer_takes_the_same_steps(
    data: Records, make_model: Callable[..., RetinaNet], make_config: Callable[..., Config]
) -> None:
    config = make_config(steps=4, accumulate=2, ema=0.9)

    def trainer(seed: int) -> Trainer:
        made = Trainer(make_model("batch", seed=seed), data, config=config, world=World())
        made.model.train()
        return made

    unbroken = trainer(0)
    seen = []
    for number, batches in enumerate(unbroken.batches()):
        if number == 2:
            snapshot = unbroken.snapshot()
            # A snapshot holds the tensors themselves; a checkpoint file copies them.
            snapshot = type(snapshot)(step=snapshot.step, tensors={n: t.clone() for n, t in snapshot.tensors.items()}, notes={})
        seen.append(unbroken.step(batches))
    resumed = trainer(1)  # other weights, so that anything that is not restored shows
    resumed.restore(snapshot)
    again = [resumed.step(batches) for batches in resumed.batches()]
    assert [step.step for step in again] == [3, 4]
    for one, other in zip(seen[2:], again, strict=True):
        assert (one.rate, one.image_indices, one.numbers()) == (other.rate, other.image_indices, other.numbers())
    expected = unbroken.snapshot().tensors
    assert expected.keys() == resumed.snapshot().tensors.keys()
    assert all(torch.equal(expected[name], tensor) for name, tensor in resumed.snapshot().tensors.items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("model.backbone.conv1.weight"), "Missing key"),
        (lambda t: t.update({"optimiser.9999.exp_avg": torch.zeros(1)}), "index out of range"),
        (lambda t: t.update({"optimiser.x.y": torch.zeros(1)}), "invalid literal"),
        (lambda t: t.update({"optimiser.0.exp_avg": torch.zeros(3)}), r"0.exp_avg has the shape \(3,\)"),
        (lambda t: t.update({"model.fpn.lateral.C3.weight": torch.zeros(1)}), "Unexpected|size mismatch"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    change: Callable[[dict[str, Tensor]], object],
    reason: str,
    data: Records,
    make_model: Callable[..., RetinaNet],
    make_config: Callable[..., Config],
) -> None:
    trainer = Trainer(make_model(), data, config=make_config(steps=2, ema=0), world=World())
    tensors = dict(trainer.snapshot().tensors)
    change(tensors)
    with pytest.raises(RunFolderError, match=reason) as caught:
        trainer.restore(Checkpoint(step=1, tensors=tensors, notes={}, path=Path("run/checkpoints/step-1.safetensors")))
    assert "step-1.safetensors does not fit the settings of its run (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
