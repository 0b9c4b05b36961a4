from collections.abc import Callable

from lw_retinanet.tradeoff.rows import ExperimentRow, baseline_row, joined, light_rows, scaling_rows


def test_roles_tell_rows_apart(make_row: Callable[..., ExperimentRow]) -> None:
    large, small = make_row(macs=100), make_row(role="scaling", scale=256, macs=40)
    light = make_row(line="blocks", role="light", variant="lw-v3", scale=800, macs=70)
    rows = [large, light, small]
    assert scaling_rows(rows) == [small, large]
    assert baseline_row(rows) is large
    assert light_rows(rows) == [light]
    assert baseline_row([light, small]) is None
    assert light.name == "lw-v3 @ 800"


def test_versions_that_differ_are_all_named() -> None:
    notes = [{"torch": "2.10.0", "processor": "CPU"}, {"torch": "2.11.0", "processor": "CPU"}, {"torch": "2.10.0", "threads": "2"}]
    assert joined(notes) == {"torch": "2.10.0 / 2.11.0", "processor": "CPU", "threads": "2"}
