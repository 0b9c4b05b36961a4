"""An exported file that answers differently is noticed, whatever the difference."""

from collections.abc import Callable

import pytest
import torch
from tests.exporting.fakes import exported_runtime
from torch import Tensor

from lw_retinanet.errors import ExportError
from lw_retinanet.exporting.agreement import CASES, check_agreement
from lw_retinanet.exporting.graph import TRACED_BATCH, TRACED_SIZE_HW, RawGraph
from lw_retinanet.exporting.manifest import Outputs
from lw_retinanet.models.retinanet import RetinaNet

Change = Callable[[str, Tensor], Tensor]


@pytest.fixture(scope="module")
def raw(model: RetinaNet) -> RawGraph:
    return RawGraph(model)


def quieter(model: RetinaNet) -> RetinaNet:
    """The model with its class offsets so low that it finds nothing in a plain image."""
    import copy

    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in made.head.cls.named_parameters():
            if name.endswith("bias") and "predict" in name:
                parameter.sub_(4.0)
    return made


@pytest.mark.parametrize("outputs", ["raw", "detections"])
def test_a_faithful_file_passes_at_other_sizes_than_the_traced_one(model: RetinaNet, raw: RawGraph, outputs: Outputs) -> None:
    agreement = check_agreement(raw, exported_runtime(model, outputs=outputs))
    assert [case[0] for case in agreement.cases[:2]] != [TRACED_BATCH, TRACED_BATCH]
    assert all(case[1:] != TRACED_SIZE_HW for case in agreement.cases)
    assert len({case[0] for case in agreement.cases}) > 1
    assert agreement.compared >= 4 * 50  # four images, fifty detections each
    assert agreement.missing == 0
    assert agreement.largest == (0.0 if outputs == "raw" else None)


def moved(name: str, values: Tensor) -> Tensor:
    return values + 0.01 if name == "deltas" else values


def one_cell_off(name: str, values: Tensor) -> Tensor:
    return values.roll(9, dims=1) if name == "logits" else values


def only_the_first_image(name: str, values: Tensor) -> Tensor:
    return values[:1].expand_as(values).clone()


def not_a_number(name: str, values: Tensor) -> Tensor:
    values.view(-1)[7] = torch.nan
    return values


def shorter(name: str, values: Tensor) -> Tensor:
    return values[:, :-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [(moved, "deltas"), (one_cell_off, "logits"), (only_the_first_image, "logits"), (not_a_number, "not all finite"), (shorter, "shape")],
)
def test_an_unfaithful_file_is_refused(model: RetinaNet, raw: RawGraph, change: Change, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_agreement(raw, exported_runtime(model, change))


def test_boxes_that_are_lost_or_moved_are_noticed(model: RetinaNet, raw: RawGraph) -> None:
    def without_the_second(name: str, values: Tensor) -> Tensor:
        if name != "counts":
            values[:, 1:5] = -1 if name == "labels" else 0
        return values

    def half_a_pixel(name: str, values: Tensor) -> Tensor:
        return values + 0.5 if name == "boxes" else values

    for change in (half_a_pixel, without_the_second):
        with pytest.raises(ExportError, match="detections of the exported file are not the model's"):
            check_agreement(raw, exported_runtime(model, change, outputs="detections"))


def test_objects_found_in_an_empty_image_are_noticed(model: RetinaNet) -> None:
    silent = quieter(model)
    silent_raw = RawGraph(silent)
    assert check_agreement(silent_raw, exported_runtime(silent)).empty
    number = iter(range(10))

    def invents_in_the_last_case(name: str, values: Tensor) -> Tensor:
        if name == "counts" and next(number) == len(CASES):
            values[:] = 1
        return values

    with pytest.raises(ExportError, match="in which the model finds none"):
        check_agreement(silent_raw, exported_runtime(silent, invents_in_the_last_case, outputs="detections"))


def test_rounding_is_allowed_where_it_was_asked_for_and_only_so_much(model: RetinaNet, raw: RawGraph) -> None:
    def noisy(share: float) -> Change:
        def change(name: str, values: Tensor) -> Tensor:
            noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
            return values + share * values.std() * noise

        return change

    with pytest.raises(ExportError, match="differ from the model's"):
        check_agreement(raw, exported_runtime(model, noisy(0.05)))
    agreement = check_agreement(raw, exported_runtime(model, noisy(0.05), precision="bf16"))
    assert agreement.rms == pytest.approx(0.05, rel=0.2)
    with pytest.raises(ExportError, match="relative error"):
        check_agreement(raw, exported_runtime(model, noisy(0.3), precision="bf16"))
    check_agreement(raw, exported_runtime(model, noisy(0.3), precision="int8"))
    with pytest.raises(ExportError, match="relative error"):
        check_agreement(raw, exported_runtime(model, noisy(0.05), half_weights=True))
