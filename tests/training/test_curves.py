import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.errors import InputError
from lw_retinanet.training.curves import _smoothed, save_curves
from lw_retinanet.training.run_folder import read_log


def write(path: Path, steps: int, *, scored: bool = False, zero: bool = False) -> Path:
    entries: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        box = 0.0 if zero else 1 / step
        entries.append({"step": step, "loss": 1 / step + box, "classification": 1 / step, "bbox_regression": box, "rate": 1e-3})
        if scored and step % 5 == 0:
            entries.append({"step": step, "AP": step / 100})
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.mark.parametrize(("steps", "scored", "zero"), [(1, False, False), (120, True, False), (10, False, True)])
def test_a_figure_is_drawn(steps: int, scored: bool, zero: bool, tmp_path: Path) -> None:
    save_curves(write(tmp_path / "log.jsonl", steps, scored=scored, zero=zero), tmp_path / "pictures", title="a run")
    with Image.open(tmp_path / "pictures" / "curves.png") as figure:
        pixels = np.asarray(figure.convert("RGB")).astype(int)
    # The blue of the total is somewhere in it.
    assert steps == 1 or (np.abs(pixels - [0, 0x72, 0xB2]).sum(axis=2) < 30).sum() > 25
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["curves.png"]


def test_smoothing_is_a_mean_over_a_fiftieth_of_the_run() -> None:
    entries = [{"step": step, "loss": float(step % 2)} for step in range(1, 101)]
    steps, means = _smoothed(entries, "loss")
    assert steps.tolist() == list(range(2, 101))
    np.testing.assert_allclose(means, 0.5)
    few, same = _smoothed(entries[:3], "loss")
    assert few.tolist() == [1, 2, 3]
    assert same.tolist() == [1.0, 0.0, 1.0]


def test_a_line_that_was_being_written_is_passed_over(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", 3)
    log.write_text(log.read_text() + '\n{"step": 4, "lo')
    assert [entry["step"] for entry in read_log(log)] == [1, 2, 3]


def test_a_log_without_steps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(InputError, match="no step is logged"):
        save_curves(tmp_path / "log.jsonl", tmp_path, title="")
    assert not (tmp_path / "curves.png").exists()
