"""The self-check finds nothing where all is well, and each planted fault."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lw_retinanet.cli.main import _run
from lw_retinanet.errors import InputError, MissingExtraError
from lw_retinanet.jobs import durable_claims, selfcheck
from lw_retinanet.jobs.command_server import CommandServer
from lw_retinanet.jobs.durable_claims import CLAIMS, MACS, Cases, Workshop
from lw_retinanet.jobs.selfcheck import run_selfcheck
from lw_retinanet.weights.foreign.torchvision_model import from_torchvision

CHEAP = ("counts", "images", "datasets", "models", "scores")


def test_what_is_cheap_to_try_is_right() -> None:
    pytest.importorskip("pycocotools")
    found = run_selfcheck(quick=True, only=CHEAP)
    assert found.is_right, found.lines()
    assert {one.claim: one.tried for one in found.results} == {
        "counts": len(MACS),
        "images": 18,
        "datasets": 17,
        "models": 13,
        "scores": 20,
    }
    assert found.lines()[-1].split()[:4] == ["all", "78", "78", "0"]


def test_a_wrong_weight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def disturbed(model: Any) -> Any:
        loaded = from_torchvision(model)
        with torch.no_grad():
            loaded.model.backbone.get_parameter("layer4.2.conv2.weight").view(-1)[0] += 3.0
        return loaded

    monkeypatch.setattr(durable_claims, "from_torchvision", disturbed)
    found = run_selfcheck(quick=True, only=["parity"])
    assert not found.is_right
    assert found.results[0].wrong
    assert "detections have no match within 0.05 pixels" in found.lines()[-1]


def test_a_truncated_file_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, is_quick=True, commands=CommandServer())
    workshop.model_file.write_bytes(workshop.model_file.read_bytes()[:-1000])
    monkeypatch.setattr(Workshop, "model_file", workshop.model_file)
    found = run_selfcheck(quick=True, only=["models"])
    assert [case.split(":")[0] for case in found.results[0].wrong] == ["WeightsError"]
    assert not found.is_right


def test_what_is_taken_or_crashes_is_wrong_and_what_is_not_installed_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(_: Workshop) -> Cases:
        yield "one", durable_claims._refused(lambda: None)
        yield "two", durable_claims._refused(lambda: 1 / 0)
        raise ZeroDivisionError("three")

    def missing(_: Workshop) -> Cases:
        yield "one", None
        raise MissingExtraError("it is not installed")

    claims = {"taken": ("it is refused", taken), "missing": ("it is there", missing)}
    monkeypatch.setattr(selfcheck, "CLAIMS", claims)
    found = run_selfcheck()
    assert [(one.tried, one.right) for one in found.results] == [(3, 0), (1, 1)]
    assert found.results[0].wrong == ("one: it was taken", "two: ZeroDivisionError: division by zero", "ZeroDivisionError: three")
    assert found.results[1].skipped == "in part: it is not installed"
    assert _run(["selfcheck", "--quick"], False) == 1
    assert "wrong: taken: one: it was taken" in capsys.readouterr().out
    claims.pop("taken")
    assert _run(["selfcheck", "--json"], False) == 0
    assert '"right": true' in capsys.readouterr().out
    monkeypatch.setattr(selfcheck, "CLAIMS", CLAIMS)
    with pytest.raises(InputError, match="did you mean kills"):
        run_selfcheck(only=["kill"])


@pytest.mark.slow
def test_everything_is_right() -> None:
    found = run_selfcheck(quick=True)
    assert found.is_right, found.lines()
    assert [one.claim for one in found.results] == list(CLAIMS)
