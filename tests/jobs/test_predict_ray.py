import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import lw_retinanet as lw
from lw_retinanet.data.records import Category
from lw_retinanet.errors import InputError, MissingExtraError
from lw_retinanet.heads import PRESETS
from lw_retinanet.interop.ray import Predict
from lw_retinanet.jobs import predict_ray
from lw_retinanet.jobs.merge_bulk import merge_bulk
from lw_retinanet.jobs.predict_bulk import BulkSettings, predict_bulk
from lw_retinanet.weights.model_file import make_record, save_model

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def settings(tmp_path: Path) -> BulkSettings:
    """A small model, and a list of 40 images and one that is not there, in chunks of 2."""
    torch.manual_seed(0)
    model = lw.create("lw-v3", num_classes=2, backbone="mobilenet_v2", head_width=16, image_size=64)
    made: Any = {"preset": "lw-v3", "backbone": "mobilenet_v2", "width": 16, "norm": "batch", "plan": PRESETS["lw-v3"], "notes": {}}
    categories = (Category(id=3, name="fish"), Category(id=7, name="crab"))
    save_model(tmp_path / "model.safetensors", model, make_record(model, categories=categories, **made))
    for number in range(40):
        Image.new("RGB", (64, 64), (5 * number, 90, 90)).save(tmp_path / f"{number}.png")
    (tmp_path / "list.txt").write_text("\n".join([*(f"{number}.png" for number in range(40)), "nowhere.png", "3.png"]))
    model_file, manifest, out = (str(tmp_path / name) for name in ("model.safetensors", "list.txt", "out"))
    return BulkSettings(model=model_file, manifest=manifest, out=out, chunk=2, score=0.0)


def rows(folder: Path) -> list[dict[str, Any]]:
    merge_bulk(folder)
    return list(parquet.read_table(folder / "predictions.parquet").to_pylist())


def test_without_ray_the_extra_is_named(settings: BulkSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"needs Ray; install it with: pip install 'lw-retinanet\[ray\]'"):
        predict_bulk(settings, ray="local")


@pytest.mark.filterwarnings("ignore")
def test_an_address_without_a_cluster_is_refused(settings: BulkSettings) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"Ray at 127\.0\.0\.1:1: .*check the address"):
        predict_bulk(settings, ray="127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_worker_loses_and_doubles_nothing(settings: BulkSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    killed = tmp_path / "killed"

    class Dying(predict_ray.PredictChunk):
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            if 5 in batch["chunk"] and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    monkeypatch.setattr(predict_ray, "PredictChunk", Dying)
    monkeypatch.chdir(tmp_path.parent)  # relative rows are found beside the list
    done = predict_bulk(settings, ray="local")
    assert killed.exists()
    assert (done.images, done.failed, done.repeated) == (41, 1, 1)
    alone = BulkSettings(**{**vars(settings), "out": str(tmp_path / "alone")})
    predict_bulk(alone)
    assert rows(tmp_path / "out") == rows(tmp_path / "alone")


@pytest.fixture
def ray_here() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.init(address="local", log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_predict_is_a_step_of_a_data_set(settings: BulkSettings, tmp_path: Path, ray_here: Any) -> None:
    options = {"score": 0.0, "folders": [str(tmp_path)]}
    files = ray_here.data.from_items([{"file": f"{number}.png"} for number in range(40)] + [{"file": "nowhere.png"}])
    found = files.map_batches(
        Predict, fn_constructor_args=[settings.model], fn_constructor_kwargs=options, batch_size=4, concurrency=1, num_cpus=1
    ).take_all()
    predict_bulk(settings)
    by_file = {row["file"]: row for row in rows(tmp_path / "out")}
    assert len(found) == 41
    for row in found:
        expected = by_file[row["file"]]
        assert (row["width"], row["height"], row["error"] is None) == (expected["width"], expected["height"], expected["error"] is None)
        assert [dict(one) for one in row["detections"]] == expected["detections"]
