import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lw_retinanet.data.sample import make_sample
from lw_retinanet.errors import InputError
from lw_retinanet.jobs import quickstart as module


@pytest.mark.slow
def test_one_page_with_everything_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(out: Path, **options: Any) -> Path:
        return make_sample(out, **{**options, "num_train": 6, "num_val": 4})

    monkeypatch.setattr(module, "make_sample", few)
    monkeypatch.setitem(module.SETTINGS, "train", {**module.SETTINGS["train"], "epochs": 1, "batch_size": 2})
    monkeypatch.setattr(module, "FIT_STEPS", 2)
    monkeypatch.setitem(module.SETTINGS, "model", {**module.SETTINGS["model"], "head_width": 16})
    page = module.run_quickstart(tmp_path / "out").page
    assert page == tmp_path / "out" / "results.md"
    text = page.read_text()
    links = re.findall(r"!\[[^]]+]\(([^)]+)\)", text)
    assert len(links) == len(set(links)) == 8
    for link in links:
        with Image.open(page.parent / link) as picture:
            picture.load()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith(("| retinanet", "| lw-v3"))
    ]
    assert [row[0] for row in rows] == ["retinanet", "lw-v3"]
    head = next(line for line in text.splitlines() if line.startswith("| model"))
    assert all(len(row) == head.count("|") - 1 for row in rows)
    macs = [float(row[6].removesuffix(" M")) for row in rows]
    fewer = re.search(r"takes ([\d.]+) times fewer multiply-accumulates in all, and ([\d.]+) times fewer in D3", text)
    assert fewer
    assert float(fewer[1]) == pytest.approx(macs[0] / macs[1], abs=0.02)
    assert float(fewer[2]) > float(fewer[1]) > 1
    assert not re.search(r"\bnan\b", text)
    for preset in (module.FULL, module.LIGHT):
        assert (tmp_path / "out" / preset / "model.safetensors").is_file()


def test_the_seed_is_that_of_the_training() -> None:
    config = module.quickstart_config(seed=4)
    assert (config.train.seed, config.model.preset) == (4, "retinanet")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_is_left_alone(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "out"
    if kind == "folder":
        place.mkdir()
    (place / "mine.txt" if kind == "folder" else place).write_text("precious")
    with pytest.raises(InputError, match="choose another output folder"):
        module.run_quickstart(place)
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "mine.txt"] if kind == "folder" else ["out"])
