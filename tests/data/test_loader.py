import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data._utils import signal_handling

from lw_retinanet.config import DataConfig
from lw_retinanet.conventions import InputRule
from lw_retinanet.data.image_sizes import require_files, with_sizes
from lw_retinanet.data.loader import Key, Sample, StepPlan, TrainingSet, collate, make_loader
from lw_retinanet.data.read_batches import WorkerWatch, read_batches
from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError, ImageError, LwRetinaNetError, TrainingError
from lw_retinanet.structures import Batch

RULE = InputRule(size=64, pad_multiple=16)
TALL, WIDE = (64, 40), (40, 64)


def make_plan(num_tall: int, num_wide: int, *, augment: str = "jitter", group: bool = True, seed: int = 0) -> StepPlan:
    sizes = np.array([TALL] * num_tall + [WIDE] * num_wide, np.int32)
    config = DataConfig.model_validate({"augment": augment, "group_by_shape": group})
    return StepPlan(sizes_hw=sizes, config=config, rule=RULE, seed=seed, batch_size=2, end_step=1)


@pytest.fixture
def records(tmp_path: Path, draw_records: Callable[..., Records]) -> Records:
    drawings = []
    for number in range(7):
        objects = [(4.0 * number, 6.0, 14.0, 20.0, number % 3), (20.0, 10.0, 12.0, 10.0, 1)][: number % 3]
        drawings.append((TALL if number % 2 else WIDE, objects))
    return draw_records(tmp_path, drawings)


def make_set(records: Records, augment: str = "full") -> TrainingSet:
    config = DataConfig.model_validate({"augment": augment})
    return TrainingSet(records, usable=np.ones(records.num_boxes, bool), seed=1, config=config, rule=RULE)


def plan_for(records: Records, *, end_step: int = 5) -> StepPlan:
    return StepPlan(sizes_hw=records.sizes_hw, config=DataConfig(augment="full"), rule=RULE, seed=1, batch_size=2, end_step=end_step)


def batches(loader_output: "list[Batch | LwRetinaNetError]") -> list[Batch]:
    for batch in loader_output:
        assert isinstance(batch, Batch)
    return loader_output  # type: ignore[return-value]


@settings(deadline=None, max_examples=40)
@given(num_tall=st.integers(0, 40), num_wide=st.integers(0, 40), group=st.booleans(), seed=st.integers(0, 99))
def test_an_epoch_shows_every_image_at_most_once(num_tall: int, num_wide: int, group: bool, seed: int) -> None:
    plan = replace(make_plan(num_tall, num_wide, group=group, seed=seed), accumulate=2)
    number = num_tall + num_wide
    if number < 4:
        return
    first, second = plan.order(0), plan.order(1)
    assert first.shape == second.shape == (number // 4, 4)
    for order in (first, second):
        assert len(set(order.flatten().tolist())) == order.size
    if number >= 16:
        assert first.tolist() != second.tolist()
    assert plan.order(0).tolist() == first.tolist()


def test_steps_hold_one_shape_but_for_the_rests() -> None:
    plan = make_plan(21, 20)
    mixed = sum(len(set((step < 21).tolist())) > 1 for step in plan.order(0))
    # 20 tall and 20 wide fill steps of two; the odd tall one is left over.
    assert mixed == 0
    assert len(plan.order(0)) == 20
    # Tall and wide steps are shuffled among each other.
    is_tall = [bool(step[0] < 21) for step in plan.order(0)]
    assert sum(a != b for a, b in pairwise(is_tall)) > 3
    assert any(len(set((step < 21).tolist())) > 1 for step in make_plan(21, 20, group=False).order(0))


def test_micro_batches_of_all_processes_are_the_large_batch() -> None:
    whole = replace(make_plan(15, 20), batch_size=12, end_step=5)
    parts = [replace(whole, batch_size=2, accumulate=3, processes=2, rank=rank) for rank in range(2)]
    assert parts[0].steps_per_epoch == whole.steps_per_epoch == 2
    assert len(parts[0]) == 15
    shares = [list(part) for part in parts]
    for step, keys in enumerate(whole):
        joined = [key for share in shares for micro_batch in share[3 * step : 3 * step + 3] for key in micro_batch]
        # Pictures, epochs and the padded size, which the network sees.
        assert joined == keys
        assert len({key.size_hw for key in keys}) == 1


def test_starting_in_the_middle_gives_the_tail_of_the_whole() -> None:
    plan = replace(make_plan(9, 10), accumulate=2, end_step=11)
    whole = list(plan)
    assert len(whole) == len(plan) == 22
    for first_step in (0, 3, 4, 5, 10, 11):
        assert list(replace(plan, first_step=first_step)) == whole[2 * first_step :]


def test_a_set_smaller_than_a_step_is_repeated_within_it() -> None:
    plan = replace(make_plan(2, 1), batch_size=8)
    assert plan.steps_per_epoch == 1
    counts = np.bincount(plan.order(0)[0])
    assert counts.sum() == 8
    assert counts.min() >= 2


def test_the_padded_size_holds_every_image_of_the_step(records: Records) -> None:
    for batch in batches(list(make_loader(make_set(records), plan_for(records), workers=0, pin=False))):
        height, width = batch.images.shape[2:]
        assert height % 16 == width % 16 == 0
        assert (batch.sizes_hw <= torch.tensor([height, width])).all()


def test_workers_change_nothing(records: Records) -> None:
    plan = plan_for(records)
    alone, helped = (batches(list(make_loader(make_set(records), plan, workers=workers, pin=False))) for workers in (0, 2))
    assert len(alone) == len(helped) == 5
    for a, b in zip(alone, helped, strict=True):
        assert a.indices == b.indices
        assert a.targets is not None
        assert b.targets is not None
        for name in ("images", "sizes_hw", "scales_xy"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        for name in ("boxes", "labels", "is_ignored"):
            assert torch.equal(getattr(a.targets, name), getattr(b.targets, name)), name


def test_a_sample_carries_its_targets(records: Records) -> None:
    # Picture 2 is 40 x 64 and keeps its size at 64: nothing is scaled, padded or moved.
    dataset = make_set(replace(records, is_crowd=np.arange(records.num_boxes) == 1), augment="none")
    sample = dataset.load(Key(epoch=0, index=2, size_hw=(48, 64)))
    assert sample.boxes.tolist() == [[8, 6, 22, 26], [20, 10, 32, 20]]
    assert sample.labels.tolist() == [2, 1]
    assert sample.is_ignored.tolist() == [bool(crowd) for crowd in dataset.records.is_crowd[records.rows(2)]]
    assert sample.scale_xy == (1.0, 1.0)
    assert sample.image[:, 6, 8].tolist() == [40, 60, 230]


def test_unusable_boxes_are_left_out(records: Records) -> None:
    dataset = make_set(records, augment="none")
    dataset.usable[records.rows(2)] = [False, True]
    assert dataset.load(Key(epoch=0, index=2, size_hw=(48, 64))).labels.tolist() == [1]


def test_mostly_hidden_boxes_are_ignored_and_slivers_dropped(tmp_path: Path, draw_records: Callable[..., Records]) -> None:
    records = draw_records(tmp_path, [((64, 64), [(24, 24, 16, 16, 0), (0, 0, 16, 64, 1), (30.0, 30.0, 0.5, 4.0, 2)])])
    dataset = make_set(records, augment="none")
    sample = dataset.load(Key(epoch=0, index=0, size_hw=(64, 64)))
    assert sample.labels.tolist() == [0, 1]
    assert not sample.is_ignored.any()
    # At up to four times the size most crops cut off more than three quarters of the left strip or the middle.
    dataset = TrainingSet(records, usable=np.ones(3, bool), seed=0, config=DataConfig(augment="jitter", jitter=(3.9, 4.0)), rule=RULE)
    samples = [dataset.load(Key(epoch=epoch, index=0, size_hw=(64, 64))) for epoch in range(60)]
    seen = {0: 16 * 16, 1: 16 * 64}
    ignored = 0
    for sample in samples:
        for box, label, is_ignored in zip(sample.boxes, sample.labels, sample.is_ignored, strict=True):
            if int(label) == 2:
                continue
            share = float((box[2:] - box[:2]).prod()) / (seen[int(label)] * 3.95**2)
            if abs(share - 0.25) > 0.02:
                assert bool(is_ignored) == (share < 0.25)
            ignored += bool(is_ignored)
    assert ignored > 5


def test_a_batch_without_boxes_has_the_shapes_of_every_other(records: Records) -> None:
    samples: list[Sample | LwRetinaNetError] = [make_set(records).load(Key(epoch=0, index=index, size_hw=(64, 64))) for index in (0, 3)]
    batch = collate(samples)
    assert isinstance(batch, Batch)
    assert batch.targets is not None
    assert batch.targets.boxes.shape == (2, 1, 4)
    assert batch.targets.labels.tolist() == [[-1], [-1]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_handed_over_by_name(records: Records, workers: int) -> None:
    records.path(3).write_bytes(b"not an image")
    loader = make_loader(make_set(records), plan_for(records, end_step=12), workers=workers, pin=False)
    errors = [item for item in loader if isinstance(item, LwRetinaNetError)]
    assert errors
    assert all(isinstance(error, ImageError) and "picture 3.png" in str(error) for error in errors)


def test_an_image_of_another_size_than_annotated_is_refused(records: Records) -> None:
    sizes = records.sizes_hw.copy()
    sizes[2] = (64, 40)
    with pytest.raises(DataError, match=r"picture 2\.png is 64x40 pixels, its annotation says 40x64"):
        make_set(replace(records, sizes_hw=sizes)).load(Key(epoch=0, index=2, size_hw=(64, 64)))


def test_unknown_sizes_are_read_and_known_ones_kept(records: Records) -> None:
    sizes = records.sizes_hw.copy()
    sizes[1] = 0
    assert with_sizes(replace(records, sizes_hw=sizes)).sizes_hw.tolist() == records.sizes_hw.tolist()
    assert sizes[1].tolist() == [0, 0]
    assert with_sizes(records) is records


def test_missing_images_are_found_before_the_work(records: Records) -> None:
    require_files(records)
    records.path(4).unlink()
    records.path(6).unlink()
    with pytest.raises(ImageError, match=r"picture 4\.png is missing and 1 more"):
        require_files(records)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGCHLD")
def test_a_handler_of_the_program_stays_and_torchs_goes(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's would raise the error of a worker that ends in the middle of whatever runs then."""

    def own(number: int, frame: object) -> None: ...

    def handler_while_reading() -> object:
        with closing(read_batches(make_set(records), plan_for(records), workers=1, pin=False, timeout=60)) as batches:
            next(batches)
            return signal.getsignal(signal.SIGCHLD)

    before = signal.signal(signal.SIGCHLD, own)
    try:
        assert handler_while_reading() is own
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
        signal_handling._set_SIGCHLD_handler()
        assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL
        assert handler_while_reading() is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), RuntimeError("lost")])
def test_a_worker_whose_socket_closed_before_it_ended_is_a_killed_one(records: Records, error: Exception) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    worker.start()
    assert worker.pid
    watch = WorkerWatch(make_set(records), workers=1)
    watch.processes[0], watch.reading[0] = worker.pid, 4

    def broken() -> Batch:
        threading.Timer(0.2, worker.kill).start()  # the system is still ending it when the reader notices
        raise error

    with pytest.raises(TrainingError, match=r"a loader worker was killed while it read .*picture 4\.png \(image 4\)"):
        watch.next_of(iter(broken, None), timeout=60)
