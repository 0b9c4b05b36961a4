import csv
import json
from pathlib import Path

import pytest

from lw_retinanet.tradeoff.csv_report import COLUMNS, write_csv
from lw_retinanet.tradeoff.rows import ExperimentRow


def test_columns_by_hand(table: list[ExperimentRow], tmp_path: Path) -> None:
    write_csv(table[4:5], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as stream:
        (cells,) = csv.DictReader(stream)
    assert tuple(cells) == COLUMNS
    assert (cells["long_side_px"], cells["height_px"], cells["width_px"]) == ("416", "320", "416")
    assert (cells["D3_macs"], cells["D3_params"], cells["C1_macs"]) == ("4050000000", "600000", "80000000")
    assert (cells["seeds"], cells["AP"], cells["APl"]) == ("0 1 2", "0.152", "")
    assert float(cells["against_scaling_line_difference"]) == pytest.approx(-0.011)
    assert float(cells["latency_median_ms"]) == 80.5
    # Numbers are not rounded, and texts come back whole.
    assert tuple(map(float, cells["ap_of_seeds"].split())) == table[4].aps
    assert json.loads(cells["made_with"]) == dict(table[4].made_with)
    assert cells["command"] == table[4].command


def test_a_table_without_rows_has_its_header(tmp_path: Path) -> None:
    write_csv([], tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().strip() == ",".join(COLUMNS)
