"""Level-wise versions of head classes that this package has never seen."""

import copy
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lw_retinanet.weights.foreign.levelwise import LevelWise, give_own_layers


class Head(nn.Module):
    """Two predictions, a parameter and a setting beside the tower, and a helper that forward calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
        self.predict = nn.Conv2d(4, 2, 3, padding=1)
        self.quality = nn.Conv2d(4, 1, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.offset = 1.0

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        both = [self.answer(maps) for maps in x]
        return torch.cat([one.flatten(1) for one, _ in both], 1), torch.cat([other.flatten(1) for _, other in both], 1)

    def answer(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.conv(maps)
        return self.predict(maps) * self.gain + self.offset, self.quality(maps)


class Loud(Head):
    def answer(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        predict, quality = super().answer(maps)
        return 10 * predict, quality


def _light(original: type[Head] = Head, level: int = 1) -> tuple[Head, Any]:
    torch.manual_seed(0)
    head = original()
    layers = {"conv": nn.Sequential(nn.Conv2d(4, 4, 1)), "predict": nn.Conv2d(4, 2, 1)}
    return head, give_own_layers(copy.deepcopy(head), level, layers)


def _maps() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(1, 4, *size) for size in ((4, 3), (2, 3), (1, 2))]


def test_own_level_runs_the_heads_own_code_on_its_own_layers() -> None:
    for original, factor in ((Head, 1), (Loud, 10)):
        head, light = _light(original)
        maps = _maps()
        old, new = head(maps), light(maps)
        own = light.own["1"]
        tower = own.conv(maps[1])
        # By hand: own tower and prediction; shared quality, gain and offset.
        expected = factor * (own.predict(tower) * head.gain + head.offset).flatten(1)
        assert torch.equal(new[0][:, 24:36], expected)
        assert torch.equal(new[1][:, 12:18], head.quality(tower).flatten(1))
        # The others, before and behind it, are untouched.
        assert torch.equal(old[0][:, :24], new[0][:, :24])
        assert torch.equal(old[0][:, 36:], new[0][:, 36:])


def test_class_stays_and_nothing_is_registered_twice() -> None:
    head, light = _light(Loud)
    assert isinstance(light, Loud)
    assert isinstance(light, LevelWise)
    assert isinstance(light.own["1"], Loud)
    assert type(_light(Loud)[1]) is type(light)
    added = light.state_dict().keys() - head.state_dict().keys()
    assert added == {"lightened", *(f"own.1.{name}.{kind}" for name in ("conv.0", "predict") for kind in ("weight", "bias"))}
    assert len(list(light.parameters())) == len(list(head.parameters())) + 4


def test_settings_and_shared_parts_are_followed_when_they_change() -> None:
    _, light = _light()
    light.offset = 100.0
    light.quality = nn.Conv2d(4, 1, 1)
    light.quality.requires_grad_(False)
    assert light.own["1"].offset == 100.0
    assert light.own["1"].quality is light.quality
    assert light(_maps())[0][:, 24:36].min() > 50
    light.double()
    assert light([maps.double() for maps in _maps()])[1].dtype == torch.float64


def test_copies_and_pickles_belong_to_themselves() -> None:
    _, light = _light()
    buffer = io.BytesIO()
    torch.save(light, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(light), torch.load(buffer, weights_only=False)):
        assert type(other) is type(light)
        assert other.own["1"].whole[0] is other
        assert all(torch.equal(one, two) for one, two in zip(other(_maps()), light(_maps()), strict=True))
        with torch.no_grad():
            other.quality.weight.zero_()
            other.quality.bias.zero_()
        assert not other(_maps())[1].any()
        assert light(_maps())[1][:, 12:18].any()


def test_missing_attributes_are_named() -> None:
    _, light = _light()
    for thing in (light, light.own["1"]):
        with pytest.raises(AttributeError, match="nonsense"):
            _ = thing.nonsense


def test_training_flag_hooks_and_compilation() -> None:
    _, light = _light()
    assert not light.eval().own["1"].training
    calls: list[int] = []
    handle = light.register_forward_hook(lambda *_: calls.append(1))
    eager = light(_maps())
    assert calls == [1]
    handle.remove()
    compiled = torch.compile(light, backend="eager", fullgraph=True)
    assert all(torch.equal(one, two) for one, two in zip(compiled(_maps()), eager, strict=True))
