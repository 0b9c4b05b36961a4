"""docs/paper.md: its tables by name, and the page with all of them in place."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import claim_tables, cost_tables
from .summary import summary_lines

PAGE = Path(__file__).parents[2] / "docs" / "paper.md"
FIGURE = PAGE.parent / "pictures" / "paper_claim.png"
_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def tables() -> dict[str, list[str]]:
    """Every table and the summary, line by line, by the name in its marker."""
    return {
        "summary": summary_lines(),
        "flops": cost_tables.flops_table(),
        "baseline": cost_tables.baseline_table(),
        "excess": cost_tables.excess_table(),
        "garbled": cost_tables.garbled_table(),
        "readings": cost_tables.readings_table(),
        "blocks": cost_tables.blocks_table(),
        "weights": cost_tables.weights_table(),
        "released": cost_tables.released_table(),
        "ap": claim_tables.ap_table(),
        "claim": claim_tables.claim_table(),
        "metrics": claim_tables.metrics_table(),
        "slope": claim_tables.slope_table(),
        "schedule": claim_tables.schedule_table(),
        "signal": claim_tables.signal_table(),
        "other": claim_tables.other_table(),
    }


def places(page: str) -> list[str]:
    """Names of the tables that a page asks for, in order."""
    return [found[2] for found in _PLACE.finditer(page)]


def filled(page: str, contents: Mapping[str, Sequence[str]]) -> str:
    """The page with what stands between ``<!-- table: NAME -->`` and ``<!-- /table -->`` replaced.

    Raises:
        KeyError: for a name without a table.
    """
    return _PLACE.sub(lambda found: "\n".join([found[1], *contents[found[2]], "", found[3]]), page)
