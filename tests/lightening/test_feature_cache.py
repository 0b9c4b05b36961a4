"""What is cached of a level: every image up to the memory limit, with the answers of the old towers if they are needed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.lightening.tower_pairs import ANCHORS, level_pair, make_tower, smooth_maps
from torch import Tensor, nn

from lw_retinanet.errors import InputError
from lw_retinanet.lightening.feature_cache import cache_features, with_answers
from lw_retinanet.lightening.towers import LevelPair

PLENTY = 1 << 30


@pytest.fixture(scope="module")
def level() -> LevelPair:
    def pair(outputs: int) -> Any:
        return [make_tower((unit,), {"prediction": outputs}, predict="1x1") for unit in ("3x3", "1x1")]

    return level_pair(pair(ANCHORS * 2), pair(ANCHORS * 4))


def test_what_is_kept_with_and_without_answers(level: LevelPair) -> None:
    maps = smooth_maps(3)
    taught = cache_features(level, iter(maps), needs_answers=True, use_bf16=False, max_bytes=PLENTY)
    plain = cache_features(level, iter(maps), needs_answers=False, use_bf16=False, max_bytes=PLENTY)
    assert len(taught) == len(plain) == 3
    for one, other, item in zip(taught, plain, maps, strict=True):
        expected = with_answers(level, item, use_bf16=False)
        assert torch.equal(one.maps, expected.maps)
        assert torch.equal(other.maps, expected.maps)
        for branch, answers in expected.answers.items():
            assert torch.equal(one.answers[branch]["prediction"], answers["prediction"])
        assert not other.answers
        assert other.num_bytes == 2 * item.numel()  # bf16
        # 16 channels of maps; 18 and 36 of answers.
        assert one.num_bytes * 16 == other.num_bytes * (16 + 18 + 36)


@pytest.mark.parametrize(("max_bytes_in_images", "kept"), [(0, 1), (2, 2), (2.99, 2), (3, 3), (100, 5)])
@pytest.mark.parametrize("taught", [True, False])
def test_the_memory_ends_the_work(level: LevelPair, max_bytes_in_images: float, kept: int, taught: bool) -> None:
    maps = smooth_maps(5)
    one = cache_features(level, maps[:1], needs_answers=taught, use_bf16=False, max_bytes=PLENTY)[0].num_bytes
    drawn = []

    def inputs() -> Iterator[Tensor]:
        for item in maps:
            drawn.append(item)
            yield item

    found = cache_features(level, inputs(), needs_answers=taught, use_bf16=False, max_bytes=int(max_bytes_in_images * one))
    assert len(found) == len(drawn) == kept  # no network runs for an image that is not kept


@pytest.mark.parametrize("use_bf16", [True, False])
def test_the_network_runs_as_the_towers_do(level: LevelPair, use_bf16: bool) -> None:
    network = nn.Conv2d(3, 16, 3, padding=1)
    seen = []

    def inputs() -> Iterator[Tensor]:
        maps = network(torch.randn(1, 3, 8, 8))
        seen.append((maps.dtype, maps.requires_grad))
        yield maps

    cache_features(level, inputs(), needs_answers=True, use_bf16=use_bf16, max_bytes=PLENTY)
    assert seen == [(torch.bfloat16 if use_bf16 else torch.float32, False)]


@pytest.mark.parametrize("taught", [True, False])
def test_maps_that_cannot_be_learned_from_are_refused(level: LevelPair, taught: bool) -> None:
    good, bad = smooth_maps(2)
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="a map of P3 has values that are not finite"):
        cache_features(level, [good, bad], needs_answers=taught, use_bf16=False, max_bytes=PLENTY)
    with pytest.raises(InputError, match=r"takes maps of shape \(1, 16, H, W\), got \(1, 8, 16, 16\)"):
        cache_features(level, [good[:, :8]], needs_answers=taught, use_bf16=False, max_bytes=PLENTY)
