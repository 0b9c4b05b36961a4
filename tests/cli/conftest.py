"""The command line inside this process, a small data set, and one small trained run that all tests read."""

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SETTINGS = {
    "model.backbone": "mobilenet_v2",
    "model.head_width": 16,
    "data.image_size": 64,
    "data.workers": 0,
    "train.batch_size": 2,
    "train.steps": 2,
    "train.precision": "fp32",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of standard output, as one JSON object."""
        return json.loads(self.out)


def state(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its content; lock files aside, which are no content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"] if folder.exists() else []
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Cli:
    """Calls commands."""

    tiny = tuple(part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}"))

    def __call__(self, *arguments: object) -> Outcome:
        from lw_retinanet.cli.main import _run

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _run([str(argument) for argument in arguments], False)
        return Outcome(code=code, out=out.getvalue(), err=err.getvalue())

    def refuses(self, *arguments: object, unchanged: Path) -> str:
        """The one line that a refused call says; nothing is printed beside it, and nothing below ``unchanged`` differs afterwards."""
        before = state(unchanged), sorted(unchanged.rglob("*"))
        outcome = self(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        assert outcome.err.count("\n") == 1, outcome.err
        assert outcome.err.startswith("error: ")
        assert "Traceback" not in outcome.err
        assert "unexpected" not in outcome.err
        assert (state(unchanged), sorted(unchanged.rglob("*"))) == before
        return outcome.err


@pytest.fixture(scope="session")
def cli() -> Cli:
    return Cli()


@pytest.fixture(scope="session")
def folder_state() -> Callable[[Path], dict[str, str]]:
    return state


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up pictures of 64 pixels, as `quickstart` uses. Not to be changed: see ``edited_data``."""
    from lw_retinanet.data.sample import make_sample

    return make_sample(tmp_path_factory.mktemp("sample") / "shapes", num_train=8, num_val=4, size=64)


@pytest.fixture
def edited_data(data: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the data whose ``split``'s annotation table went through ``edit``."""

    def copy(edit: Callable[[dict[str, Any]], object] | None = None, split: str = "train") -> Path:
        target = tmp_path / "edited"
        shutil.copytree(data, target)
        if edit:
            file = target / f"{split}.json"
            table = json.loads(file.read_text())
            edit(table)
            file.write_text(json.dumps(table))
        return target

    return copy


@pytest.fixture(scope="session")
def trained(cli: Cli, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps. Not to be changed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    outcome = cli("train", data, *cli.tiny, "--out", run)
    assert outcome.code == 0, outcome
    (run.parent / "stdout.txt").write_text(outcome.out)
    return run


@pytest.fixture(scope="session")
def lively(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with its prior taken out, so that every picture has detections."""
    import torch

    from lw_retinanet.weights.model_file import load_model, save_model

    loaded = load_model(trained)
    with torch.no_grad():
        for name, parameter in loaded.model.head.named_parameters():
            if name.endswith("bias") and parameter.numel() == loaded.model.num_classes * 9:
                parameter.zero_()
    path = tmp_path_factory.mktemp("lively") / "model.safetensors"
    save_model(path, loaded.model, loaded.record)
    return path


@pytest.fixture(scope="session")
def full_and_light(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a RetinaNet that finds plenty, and of the same with a light head beside its own."""
    import torch

    from lw_retinanet.heads import PRESETS, HeadPlan
    from lw_retinanet.lightening.surgery import lighten_copy
    from lw_retinanet.models.build import build
    from lw_retinanet.weights.model_file import load_model, save_model

    torch.manual_seed(0)
    record = load_model(trained).record
    plan = HeadPlan()
    full = build(
        plan,
        num_classes=len(record.classes),
        backbone=record.backbone,
        width=record.width,
        norm=record.norm,
        init="fan_in",
        conventions=record.conventions,
    ).eval()
    torch.nn.init.zeros_(full.head.cls.get_parameter("shared_predict.bias"))
    light, _ = lighten_copy(full, PRESETS["lw-v3"])
    folder = tmp_path_factory.mktemp("two heads")
    save_model(folder / "full.safetensors", full, record.model_copy(update={"plan": plan, "preset": "retinanet"}))
    both = {"plan": light.head.plan, "switchable": True, "full_output": True}
    save_model(folder / "light.safetensors", light, record.model_copy(update=both))
    return folder / "full.safetensors", folder / "light.safetensors"
