import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lw_retinanet.errors import InputError
from lw_retinanet.evaluation.paired import Estimate
from lw_retinanet.tradeoff.csv_table import COLUMNS, read_csv, write_csv
from lw_retinanet.tradeoff.rows import Row

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
shares = st.floats(0, 1)


def test_reading_back_gives_the_same(table: list[Row], tmp_path: Path) -> None:
    write_csv(table, tmp_path / "table.csv")
    assert read_csv(tmp_path / "table.csv") == table


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts, command=texts, value=shares, aps=st.lists(shares, max_size=4))
def test_any_text_and_number_comes_back(
    make_row: Callable[..., Row], tmp_path: Path, text: str, command: str, value: float, aps: list[float]
) -> None:
    row = make_row(line=text, variant=text, command=command, aps=tuple(aps), made_with={text: command}, seconds=value)
    row = replace(row, metrics={"AP": Estimate(value=value, low=value / 3, high=1.0)})
    write_csv([row], tmp_path / "table.csv")
    assert read_csv(tmp_path / "table.csv") == [row]


def test_columns_by_hand(table: list[Row], tmp_path: Path) -> None:
    write_csv(table[4:5], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as stream:
        (cells,) = csv.DictReader(stream)
    assert tuple(cells) == COLUMNS
    assert (cells["long_side_px"], cells["height_px"], cells["width_px"]) == ("416", "320", "416")
    assert (cells["D3_macs"], cells["D3_params"], cells["C1_macs"]) == ("4050000000", "600000", "80000000")
    assert (cells["seeds"], cells["AP"], cells["APl"]) == ("0 1 2", "0.152", "")
    assert float(cells["against_scaling_line_difference"]) == pytest.approx(-0.011)
    assert float(cells["latency_median_ms"]) == 80.5


def test_a_table_without_rows_has_its_header(tmp_path: Path) -> None:
    write_csv([], tmp_path / "table.csv")
    assert read_csv(tmp_path / "table.csv") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("role,regime", "role,way", "no column 'regime'"),
        (",baseline,", ",king,", "line 2: role is 'king'; known are baseline, scaling, light"),
        (",head,", ",none,", "line 2: regime is 'none'; known are full, head, lighten"),
        (",416,320,416,", ",416,x,416,", "line 2: height_px is 'x'"),
    ],
)
def test_a_foreign_file_is_named_with_its_place(table: list[Row], tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "table.csv"
    write_csv(table[:1], path)
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    with pytest.raises(InputError, match=message):
        read_csv(path)


def test_a_file_cut_short_or_missing(table: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(InputError, match="cannot be read"):
        read_csv(path)
    write_csv(table[:1], path)
    path.write_bytes(path.read_bytes()[:-250])
    with pytest.raises(InputError, match="line 2"):
        read_csv(path)
