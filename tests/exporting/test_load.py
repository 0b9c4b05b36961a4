"""What can be opened as a detector."""

from pathlib import Path

import pytest
import torch
from torchvision.models import detection

from lw_retinanet.errors import WeightsError
from lw_retinanet.exporting.load import open_detector

NAME = "torchvision:retinanet_resnet50_fpn_v2"
FILE = "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision's file would be in an empty cache, on a machine without a network."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints" / FILE


def test_torchvisions_weights_by_name(cached: Path) -> None:
    torch.manual_seed(0)
    state = detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    torch.save(state, cached)
    detector = open_detector(NAME)
    assert len(detector.categories) == 80
    assert (detector.categories[0].id, detector.categories[0].name) == (1, "person")
    assert detector.conventions.p6_source == "C5"  # as in v2 only
    name = "backbone.fpn.extra_blocks.p7.weight"
    assert any(torch.equal(state[name], parameter) for parameter in detector.model.parameters() if parameter.shape == state[name].shape)


def test_without_a_network_the_place_and_the_address_are_named(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WeightsError) as caught:
        open_detector(NAME)
    assert f"{NAME} is not at {cached}, and cannot be downloaded (no route to host); " in str(caught.value)
    assert str(caught.value).endswith(f"download https://download.pytorch.org/models/{FILE} and put it there")


def test_a_damaged_file_in_the_cache(cached: Path) -> None:
    cached.write_bytes(b"half a download")
    with pytest.raises(WeightsError) as caught:
        open_detector(NAME)
    assert str(caught.value).startswith(f"{cached}: cannot be read as weights of {NAME} (")
    assert str(caught.value).endswith("remove the file, and try again")


def test_another_name() -> None:
    with pytest.raises(WeightsError, match="did you mean retinanet_resnet50_fpn"):
        open_detector("torchvision:retinanet_resnet50")
