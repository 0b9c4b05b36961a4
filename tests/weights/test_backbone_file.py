import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import mobilenet_v2, resnet18

from lw_retinanet.config import ModelConfig
from lw_retinanet.errors import WeightsError
from lw_retinanet.models.backbone import Backbone, make_backbone
from lw_retinanet.weights.backbone_file import load_backbone, read_tensors
from lw_retinanet.weights.create import create_model

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """The state dict of torchvision's own classifier."""
    torch.manual_seed(3)
    return dict(mobilenet_v2(weights=None).state_dict())


@pytest.fixture
def backbone() -> Backbone:
    return make_backbone("mobilenet_v2", norm="frozen", stride_in="3x3", norm_eps=1e-5)


def features(backbone: Backbone) -> list[Tensor]:
    with torch.no_grad():
        return list(backbone.eval()(torch.ones(1, 3, 64, 64)).values())


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped.pth", "half.safetensors"])
def test_a_classifiers_weights_fill_the_backbone(form: str, state: State, tmp_path: Path, backbone: Backbone) -> None:
    path = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "half.safetensors":
        save_file({name: tensor.half() for name, tensor in state.items()}, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "wrapped.pth" else state, path)
    load_backbone(backbone, name="mobilenet_v2", source=str(path))
    loaded = backbone.state_dict()
    assert len(loaded) > 200
    exact = form != "half.safetensors"
    for name, tensor in loaded.items():
        expected = state[name] if exact else state[name].half().float()
        assert torch.equal(tensor, expected), name


def test_the_filled_backbone_computes_what_torchvision_does(tmp_path: Path) -> None:
    classifier = resnet18(weights=None).eval()
    save_file(classifier.state_dict(), tmp_path / "resnet18.safetensors")
    model = create_model(
        ModelConfig(backbone="resnet18", head_width=16, backbone_weights=str(tmp_path / "resnet18.safetensors")), num_classes=2
    )
    images = torch.ones(1, 3, 64, 64)
    with torch.no_grad():
        hidden = classifier.maxpool(classifier.relu(classifier.bn1(classifier.conv1(images))))
        expected = classifier.layer4(classifier.layer3(classifier.layer2(classifier.layer1(hidden))))
    # A frozen norm multiplies once where torch's divides and multiplies: 1e-4 of values around 1.
    torch.testing.assert_close(features(model.backbone)[-1], expected, rtol=1e-4, atol=1e-4)


def other(state: State, **changes: Any) -> State:
    result = {**state, **changes}
    return {name: tensor for name, tensor in result.items() if tensor is not None}


NORM = "features.0.1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: other(s, **{NORM: None}), f"do not fit backbone mobilenet_v2: 1 missing, first {NORM}; name the backbone"),
        (lambda s: other(s, surprise=torch.zeros(1)), "1 not known, first surprise"),
        (lambda s: other(s, **{NORM: torch.zeros(7)}), rf"{NORM} is \(7,\) instead of \(32,\)"),
        (lambda s: other(s, **{NORM: torch.full((32,), float("nan"))}), f"{NORM} is not finite"),
        (lambda s: dict(resnet18(weights=None).state_dict()), r"missing, first features.*not known, first conv1\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    change: Callable[[State], State], message: str, state: State, tmp_path: Path, backbone: Backbone
) -> None:
    torch.save(change(state), tmp_path / "w.pth")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_backbone(backbone, name="mobilenet_v2", source=str(tmp_path / "w.pth"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


class Intruder:
    """Pickles to a call that an unguarded load would run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_pickle_is_read_without_running_it(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "more": Intruder(tmp_path / "trace")}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Intruder(tmp_path / "trace")))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(WeightsError, match="damaged or holds more than tensors") as caught:
            read_tensors(tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "cannot read weights file .*cut"),
        ("empty.pth", b"", "cannot read weights file .*empty"),
        ("text.pth", b"no tensors here", "cannot read weights file .*text"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_tensors(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [[torch.zeros(1)], {"a": 3}, {1: torch.zeros(1)}])
def test_a_file_without_a_state_dict_is_refused(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no state dict of tensors"):
        read_tensors(tmp_path / "w.pth")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights file .*imagnet does not exist; give none, imagenet or"):
        read_tensors(tmp_path / "imagnet")


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError('invalid hash value (expected "b67a52", got "00")')])
def test_without_a_network_the_way_out_is_named(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(WeightsError, match=r"cannot get the ImageNet weights of resnet18 \(.*\); give a local file") as caught:
        create_model(ModelConfig(backbone="resnet18", head_width=16, backbone_weights="imagenet"), num_classes=1)
    assert str(error) in str(caught.value)


def test_downloaded_weights_are_checked_and_are_tensors_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def download(url: str, target: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        seen.append(hash_prefix)
        torch.save({"weight": torch.zeros(1), "more": Intruder(tmp_path / "trace")}, target)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    with pytest.raises(WeightsError, match="ImageNet weights of resnet18"):
        create_model(ModelConfig(backbone="resnet18", head_width=16, backbone_weights="imagenet"), num_classes=1)
    assert len(seen) == 1
    assert seen[0]
    assert not (tmp_path / "trace").exists()
