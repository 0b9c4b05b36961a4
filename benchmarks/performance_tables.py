"""Put a measurement into docs/performance.md.

    lw-retinanet benchmark retinanet lw-v3 --against torchvision --precision all --out RUN
    python benchmarks/performance_tables.py base RUN/benchmark.json [--stages] [--command "lw-retinanet benchmark ..."]

NAME is that of a place in the document, ``<!-- table: NAME -->`` to ``<!-- /table -->``; what stands there is replaced by the table.
"""

import argparse
import json
from pathlib import Path

from lw_retinanet.benchmarking.tables import filled, markdown

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("result", type=Path, help="benchmark.json")
    parser.add_argument("--stages", action="store_true", help="the table of stages, and not the one of times")
    parser.add_argument("--command", help="that made it, to stand above the table")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    a = parser.parse_args()
    table = markdown(json.loads(a.result.read_text(encoding="utf-8")), stages=a.stages)
    if a.command:
        table = [f"`{a.command}`", "", *table]
    try:
        text = filled(a.document.read_text(encoding="utf-8"), a.name, table)
    except KeyError:
        raise SystemExit(f"{a.document} has no place for a table {a.name}") from None
    a.document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
