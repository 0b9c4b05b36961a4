from pathlib import Path
from typing import Any

import pytest

from lw_retinanet.jobs.quickstart import Quickstart


def test_the_page_is_printed(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def run_quickstart(out: Path, *, seed: int, progress: object) -> Quickstart:
        seen.extend([out, seed])
        page = out / "results.md"
        page.parent.mkdir()
        page.write_text("# A page\n")
        return Quickstart(page=page, models=())

    monkeypatch.setattr("lw_retinanet.jobs.quickstart.run_quickstart", run_quickstart)
    outcome = cli("quickstart", "--out", tmp_path / "q", "--seed", "3")
    assert seen == [tmp_path / "q", 3]
    assert outcome.out.startswith("# A page\n")
    assert str(tmp_path / "q" / "results.md") in outcome.out


def test_what_is_there_is_left_alone(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mine.txt").write_text("precious")
    assert "is not empty; choose another output folder" in cli.refuses("quickstart", "--out", tmp_path / "q", unchanged=tmp_path)
    assert "mine.txt is a file" in cli.refuses("quickstart", "--out", tmp_path / "q" / "mine.txt", unchanged=tmp_path)
