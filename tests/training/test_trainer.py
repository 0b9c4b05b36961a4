from collections.abc import Callable

import torch

from lw_retinanet.config import Config
from lw_retinanet.data.records import Records
from lw_retinanet.models.retinanet import RetinaNet
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
