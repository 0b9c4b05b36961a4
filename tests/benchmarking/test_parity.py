from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.benchmarking.networks import images, network
from tests.exporting.fakes import CATEGORIES, exported_runtime
from torch import Tensor

from lw_retinanet.benchmarking.parity import ParityError, check_torchvision, check_variant
from lw_retinanet.detection.detector import Detector
from lw_retinanet.exporting.manifest import ExportPrecision, Outputs
from lw_retinanet.exporting.opening import exported_detector
from lw_retinanet.heads import plan_of
from lw_retinanet.lightening.surgery import lighten_copy
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.foreign.torchvision_twin import torchvision_twin


def exported(
    model: RetinaNet, outputs: Outputs, precision: ExportPrecision = "fp32", change: Callable[[str, Tensor], Tensor] = lambda _, v: v
) -> Detector:
    return exported_detector(exported_runtime(model, change, outputs=outputs, precision=precision))


def variant(reference: Detector, detector: Detector, precision: str) -> object:
    return check_variant(reference, detector, images(), name="B", against="A", precision=precision)


def test_torchvision_with_the_same_weights_passes() -> None:
    model = network()
    parity = check_torchvision(torchvision_twin(model), model, images(), name="mine", full_head=False)
    assert (parity.images, parity.missing) == (4, 0)
    assert parity.detections > 40
    assert parity.logits is not None
    assert parity.logits < 1e-4
    assert parity.box < 0.05
    assert parity.line().startswith("mine answers as torchvision does: logits and deltas within")


def test_the_full_head_of_a_lightened_model_is_what_is_compared() -> None:
    model = network()
    light, _ = lighten_copy(model, plan_of("lw-v3"))
    twin = torchvision_twin(light)
    assert check_torchvision(twin, light, images(), name="light", full_head=True).detections > 40
    with pytest.raises(ParityError, match=r"light does not answer as torchvision does.*logits differ"):
        check_torchvision(twin, light, images(), name="light", full_head=False)


@pytest.mark.parametrize("part", ["head.classification_head.cls_logits.bias", "head.regression_head.bbox_reg.weight"])
def test_another_weight_is_noticed(part: str) -> None:
    model = network()
    twin = torchvision_twin(model)
    with torch.no_grad():
        twin.get_parameter(part).mul_(1.001)
    with pytest.raises(ParityError, match="nothing was timed"):
        check_torchvision(twin, model, images(), name="mine", full_head=False)


def test_other_post_processing_is_noticed() -> None:
    model = network()
    twin = torchvision_twin(model)
    twin.nms_thresh = 0.3  # the networks agree, the boxes do not
    with pytest.raises(ParityError, match="have no match"):
        check_torchvision(twin, model, images(), name="mine", full_head=False)


@pytest.mark.parametrize("outputs", ["raw", "detections"])
def test_an_exported_file_in_fp32(outputs: Outputs) -> None:
    model = network()
    reference = Detector.of_model(model, CATEGORIES)
    parity = variant(reference, exported(model, outputs), "fp32")
    assert parity.missing == 0  # type: ignore[attr-defined]
    assert parity.detections > 40  # type: ignore[attr-defined]

    def shifted(name: str, values: Tensor) -> Tensor:
        return values + 0.2 if name in ("boxes", "logits") else values

    with pytest.raises(ParityError, match="B does not answer as A does"):
        variant(reference, exported(model, outputs, change=shifted), "fp32")


def test_a_file_that_drops_detections_is_noticed() -> None:
    model = network()

    def first_half(name: str, values: Tensor) -> Tensor:
        return values // 2 if name == "counts" else values

    with pytest.raises(ParityError, match="have no match"):
        variant(Detector.of_model(model, CATEGORIES), exported(model, "detections", change=first_half), "fp32")


def test_rounded_networks_have_a_limit_as_a_whole() -> None:
    model = network()
    reference = Detector.of_model(model, CATEGORIES)
    parity = variant(reference, Detector.of_model(model, CATEGORIES, precision="bf16"), "bf16")
    assert 0 < parity.rms < 0.15  # type: ignore[attr-defined]
    with pytest.raises(ParityError, match="relative error"):
        variant(reference, exported(model, "raw", "int8", lambda _, values: values.flip(1)), "int8")


def test_rounded_boxes_have_to_be_found_again() -> None:
    model = network()
    reference = Detector.of_model(model, CATEGORIES)
    parity: Any = variant(reference, exported(model, "detections", "int8"), "int8")
    assert parity.rms is None
    assert parity.share > 0.9
    assert f"at least {parity.share:.0%} of the detections of an image shared (4 images)" in parity.line()

    def elsewhere(name: str, values: Tensor) -> Tensor:
        return values + 1000 if name == "boxes" else values

    with pytest.raises(ParityError, match="share only 0% of the detections"):
        variant(reference, exported(model, "detections", "int8", elsewhere), "int8")
