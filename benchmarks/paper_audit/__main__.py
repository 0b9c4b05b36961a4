"""Work out every number of docs/paper.md that is ours, and put tables and figure in place.

    python -m benchmarks.paper_audit [--write]

from the top of the checkout. Without ``--write`` the tables are printed. Costs are counted, not measured, so they are the same on every
machine; tests/test_paper_audit.py compares the page with them.
"""

import argparse

from lw_retinanet.files import write_text

from .figure import save_figure
from .page import FIGURE, PAGE, filled, tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite docs/paper.md's tables and the figure")
    arguments = parser.parse_args()
    contents = tables()
    if arguments.write:
        write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), contents))
        save_figure(FIGURE)
        return
    for name, lines in contents.items():
        print(f"\n{name}\n", *lines, sep="\n")


if __name__ == "__main__":
    main()
