"""Packed detections: the same table bit for bit, small, and refused if damaged or of other data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError
from lw_retinanet.evaluation.detections import DetectionTable, write_results
from lw_retinanet.evaluation.packed_detections import pack_detections, read_detections


@pytest.fixture
def records(draw_records: Callable[..., Records], tmp_path: Path) -> Records:
    return draw_records(tmp_path / "images", [((8, 8), [(1, 1, 4, 4, 0)])] * 30)


def table_of(records: Records, *, single: bool, count: int = 4000) -> DetectionTable:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 300, (count, 4))
    corners[:, 2:] += corners[:, :2]
    scores = random.choice(np.linspace(0.05, 1, 50), count)  # many are equal, so that the order counts
    if single:
        corners, scores = corners.astype(np.float32), scores.astype(np.float32)
    corners = corners.astype(np.float64)
    corners[:, 2:] -= corners[:, :2]
    images = np.sort(random.integers(records.num_images, size=count))
    return DetectionTable.from_arrays(images, corners, scores, random.integers(len(records.categories), size=count))


@pytest.mark.parametrize("single", [True, False])
def test_nothing_is_lost(records: Records, tmp_path: Path, single: bool) -> None:
    table = table_of(records, single=single)
    pack_detections(table, records, tmp_path / "detections.npz")
    back = read_detections(tmp_path, records)
    for name, column in vars(table).items():
        assert np.array_equal(getattr(back, name), column), name
    if single:
        assert (tmp_path / "detections.npz").stat().st_size < 20 * len(table)
    before = (tmp_path / "detections.npz").read_bytes()
    pack_detections(table, records, tmp_path / "detections.npz")
    assert (tmp_path / "detections.npz").read_bytes() == before


def test_no_detections_and_results_files_are_read_too(records: Records, tmp_path: Path) -> None:
    pack_detections(DetectionTable.empty(), records, tmp_path / "none.npz")
    assert len(read_detections(tmp_path / "none.npz", records)) == 0
    table = table_of(records, single=True, count=5)
    write_results(table, records, tmp_path / "detections.json")
    assert np.array_equal(read_detections(tmp_path, records).scores, table.scores)


def test_what_is_damaged_or_of_other_data_is_refused(records: Records, tmp_path: Path) -> None:
    file = tmp_path / "detections.npz"
    pack_detections(table_of(records, single=True), records, file)
    few = records.subset(np.arange(1))
    with pytest.raises(DataError, match=r"image .* is not in the data set; give the data"):
        read_detections(file, few)
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:200] + b"\xff" * 400 + content[600:]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="not a whole file of packed detections"):
            read_detections(file, records)
