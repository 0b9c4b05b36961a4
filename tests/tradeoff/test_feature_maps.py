"""Feature maps on disk are what the trunk computes, and nothing else is taken for them."""

from pathlib import Path

import pytest
import torch

from lw_retinanet.conventions import LEVELS
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.image_sizes import with_sizes
from lw_retinanet.data.images import decode
from lw_retinanet.data.preprocess import normalise, pad_to, resize, to_tensor
from lw_retinanet.data.records import Records
from lw_retinanet.errors import RunFolderError
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.tradeoff.feature_maps import FeatureMaps, compute_feature_maps
from lw_retinanet.weights.model_file import load_model


@pytest.fixture(scope="module")
def trunk(trunk_file: Path) -> RetinaNet:
    return load_model(trunk_file).model


@pytest.fixture(scope="module")
def records(shapes: Path) -> Records:
    return with_sizes(Dataset.open(shapes).read("train"))


def compute(trunk: RetinaNet, records: Records, folder: Path, *, origin: str = "here", size: int = 96) -> FeatureMaps:
    return compute_feature_maps(
        trunk,
        records,
        folder,
        rule=trunk.conventions.input.model_copy(update={"size": size}),
        views=("plain", "mirrored"),
        origin={"data": origin},
        device=torch.device("cpu"),
        use_bf16=False,
    )


def test_maps_are_those_of_the_image_and_of_its_mirror_image(trunk: RetinaNet, records: Records, tmp_path: Path) -> None:
    maps = compute(trunk, records, tmp_path)
    size_hw = maps.resized_hw(2)
    plain = resize(to_tensor(decode(records.path(2))), size_hw, maps.rule)
    for view, image in (("plain", plain), ("mirrored", plain.flip(2))):
        inputs = normalise(pad_to([image], maps.padded_hw(2)), torch.tensor([size_hw]), maps.rule)
        with torch.inference_mode():
            expected = trunk.fpn(trunk.backbone(inputs))
        loaded = maps.load([2, 2], [view, view])
        for level in LEVELS:
            torch.testing.assert_close(loaded[level][1:], expected[level], atol=1e-5, rtol=1e-4)
            assert loaded[level].is_contiguous(memory_format=torch.channels_last)


def test_an_interrupted_call_is_taken_up_where_it_stopped(trunk: RetinaNet, records: Records, tmp_path: Path) -> None:
    maps = compute(trunk, records, tmp_path)
    kept, lost = maps.path(0, "plain"), maps.path(3, "mirrored")
    before, expected = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    compute(trunk, records, tmp_path)
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == expected


def test_maps_of_something_else_are_refused(trunk: RetinaNet, records: Records, tmp_path: Path) -> None:
    compute(trunk, records, tmp_path)
    with pytest.raises(RunFolderError, match=r"another data; choose another output folder"):
        compute(trunk, records, tmp_path, origin="elsewhere")
    with pytest.raises(RunFolderError, match=r"another rule; choose another output folder"):
        compute(trunk, records, tmp_path, size=64)


def test_a_broken_file_is_named_with_the_remedy(trunk: RetinaNet, records: Records, tmp_path: Path) -> None:
    maps = compute(trunk, records, tmp_path)
    maps.path(1, "plain").write_bytes(b"nothing")
    with pytest.raises(RunFolderError, match=r"000001-plain\.safetensors cannot be read .*; remove"):
        maps.load([1], ["plain"])
