import pytest
import torch
from tests.benchmarking.networks import images, network
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, ssdlite320_mobilenet_v3_large

from lw_retinanet.benchmarking.contender import image_tensor
from lw_retinanet.benchmarking.realistic import make_detector_realistic, make_realistic, scale_layers
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError
from lw_retinanet.heads import plan_of
from lw_retinanet.models.build import build


def test_layers_pass_on_a_deviation_of_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 5))
    with torch.no_grad():
        for name in ("0", "2", "4"):
            model.get_parameter(f"{name}.weight").mul_(1e-4)  # as deep towers of small weights do: nothing arrives
    images = torch.randn(2, 3, 8, 8)
    scale_layers(model, lambda: model(images))
    for stop in (1, 3, 5):
        assert float(model[:stop](images).detach().std()) == pytest.approx(1, rel=1e-3)


def test_dead_layers_stay() -> None:
    model = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(model.weight)
    scale_layers(model, lambda: model(torch.zeros(1, 3, 4, 4)))
    assert bool(model.weight.isfinite().all())


@pytest.mark.parametrize("preset", ["retinanet", "lw-v3", "bbox-v1", "lw-v3-released"])
def test_as_many_candidates_as_asked_for(preset: str) -> None:
    model = network(preset, candidates=100)
    detector = Detector.of_model(model, ())
    with torch.inference_mode():
        predictions = detector.network(detector.prepare([images().decoded(0)]).images)
    scores = predictions.logits.sigmoid()
    assert abs(int((scores > 0.05).sum()) - 100) <= 1
    assert scores.max() < 1
    assert 0.02 < float(predictions.deltas.std()) < 1  # boxes near their anchors
    assert len(detector.predict_arrays([images().decoded(0)])[0]) > 10  # the old state of things: none


def test_only_the_head_changes_where_that_is_asked_for() -> None:
    torch.manual_seed(0)
    model = build(plan_of("retinanet"), num_classes=3, backbone="resnet18", width=16).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make_realistic(model, torch.randn(1, 3, 64, 64), candidates=50, head_only=True)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("head.") for name in changed)


@pytest.mark.parametrize("kind", ["ssd", "rcnn"])
def test_detectors_of_torchvision_have_something_to_suppress(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "ssd":
        model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    else:
        model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=96)
    image = image_tensor(images().decoded(0))
    make_detector_realistic(model.eval(), image, candidates=200)
    with torch.inference_mode():
        found = model([image])[0]
    assert bool(found["boxes"].isfinite().all())
    assert len(found["scores"]) > 10
    above = int((found["scores"] > 0.01).sum()) if kind == "ssd" else len(found["scores"])
    assert 5 < above <= 200  # after NMS no more than there were before


def test_other_models_are_refused() -> None:
    with pytest.raises(InputError, match="a Net cannot be given realistic scores"):
        make_detector_realistic(Net(), torch.zeros(3, 8, 8))


class Net(nn.Module):
    def forward(self, images: list[torch.Tensor]) -> None:
        pass
