"""What becomes of a run that gets a signal, loses a worker or its folder, or fills the disk: the runs of ``disturbed_runs.py``."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lw_retinanet.data.sample import make_sample
from lw_retinanet.training.checkpoint import load_latest
from lw_retinanet.weights.model_file import load_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("disturbed")
    data = make_sample(out / "data", num_train=13, num_val=4, size=64)
    table = json.loads((data / "train.json").read_text())
    with_boxes = [image["id"] for image in table["images"]][:3]  # so that some steps have none
    table["annotations"] = [annotation for annotation in table["annotations"] if annotation["image_id"] in with_boxes]
    (data / "train.json").write_text(json.dumps(table))
    program = Path(__file__).with_name("disturbed_runs.py")
    ran = subprocess.run([sys.executable, str(program), str(out), str(data)], capture_output=True, text=True, check=False, timeout=280)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return {**found, "out": out}


def error_of(run: dict[str, Any]) -> str:
    """The one line that a failed run says; it leaves no process and no half file."""
    assert run["is_alone"], run
    assert run["scraps"] == []
    assert "Traceback" not in run["errors"], run["errors"]
    assert "unexpected" not in run["errors"], run["errors"]
    lines = [line for line in run["errors"].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, run["errors"]
    return lines[0]


@pytest.mark.parametrize(
    ("name", "code", "last"), [("sigterm", 143, "stopped by a signal"), ("sigint", 130, "interrupted"), ("sighup", 129, "stopped")]
)
def test_a_signal_writes_a_checkpoint_and_ends_the_run_with_all_its_processes(
    report: dict[str, Any], name: str, code: int, last: str
) -> None:
    run = report[name]
    assert run["code"] == code, run
    assert run["checkpoints"] == ["step-00000003"]  # the step that was under way, and nothing else would have saved it
    assert run["is_alone"]
    assert run["scraps"] == []
    said = run["errors"].splitlines()
    assert "Traceback" not in run["errors"], run["errors"]
    assert said[-2].startswith("stopped after step 3 of 6; resume goes on")
    assert said[-1].startswith(last)


def test_what_a_signal_ended_goes_on_to_the_same_weights(report: dict[str, Any]) -> None:
    resumed = report["sigterm_resumed"]
    assert resumed["code"] == 0, resumed["errors"]
    assert resumed["weights"] == report["whole"]
    assert resumed["steps"] == [1, 2, 3, 4, 5, 6]


def test_a_second_signal_ends_at_once(report: dict[str, Any]) -> None:
    assert report["twice"]["code"] == -15  # by the signal itself, which a shell shows as 143
    assert report["twice"]["is_alone"]


@pytest.mark.parametrize(
    ("name", "start"), [("worker_killed", "a loader worker was killed"), ("worker_hangs", "no loader worker has given a batch for 3 s")]
)
def test_a_lost_worker_ends_the_run_with_the_image_named(report: dict[str, Any], name: str, start: str) -> None:
    run = report[name]
    assert run["code"] == 1
    assert re.search(rf"error: {start} while it read .*/images/\w+\.jpg \(image 5\); ", error_of(run))


def test_a_full_disk_keeps_the_checkpoints_and_tells_the_bytes(report: dict[str, Any]) -> None:
    run = report["full_disk"]
    assert run["code"] == 1
    assert run["checkpoints"] == ["step-00000002", "step-00000004"]
    assert re.search(
        r"step-00000006\.safetensors: cannot be written .*: it needs [\d,]{9,} bytes, and [\d,]+ are free there; ", error_of(run)
    )


def test_a_log_that_cannot_grow_ends_the_run(report: dict[str, Any]) -> None:
    assert report["full_log"]["code"] == 1
    assert "log.jsonl: cannot be written (File too large)" in error_of(report["full_log"])


def test_a_deleted_folder_ends_the_run(report: dict[str, Any]) -> None:
    assert report["folder_deleted"]["code"] == 2
    assert "log.jsonl: cannot be written (No such file" in error_of(report["folder_deleted"])


def test_a_damaged_folder_is_repaired_and_that_is_said(report: dict[str, Any]) -> None:
    run = report["damaged"]
    assert run["code"] == 0, run["errors"]
    assert run["weights"] == report["whole"]  # from the checkpoint before
    assert "step-00000006.safetensors is damaged (" in run["errors"]
    assert "step-00000006.safetensors is a folder where a checkpoint belongs; it is called step-00000006.safetensors-" in run["errors"]
    assert "log.jsonl: 5 of the steps 1 to 5 are not in it any more" in run["errors"]
    assert run["steps"] == [6]


def log_of(report: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (report["out"] / name / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("number", [2, 3])
def test_several_processes_equal_one_with_the_same_global_batch(report: dict[str, Any], number: int) -> None:
    # 13 images make two steps of 6, and one is left over in each epoch.
    assert [rank["code"] for rank in report[f"together_{number}"]["ranks"]] == [0] * number, report[f"together_{number}"]
    alone, shared = (load_model(report["out"] / f"together {count}").model.state_dict() for count in (1, number))
    for name, tensor in alone.items():
        assert float((shared[name] - tensor).abs().max()) < 1e-6, name
    one, many = (log_of(report, f"together {count}") for count in (1, number))
    assert [entry["positives"] for entry in many] == [entry["positives"] for entry in one]
    assert any(entry["positives"] == 0 for entry in one)  # the images of such a step are all negative
    assert [entry["loss"] for entry in many] == pytest.approx([entry["loss"] for entry in one], rel=1e-5)


def test_a_killed_process_ends_the_others_in_one_line_with_a_whole_checkpoint(report: dict[str, Any]) -> None:
    lost = report["rank_killed"]
    left, killed = lost["ranks"]
    assert killed["code"] == -9
    assert left["code"] == 1
    assert "process 0 of 2 has lost another process of the run (" in error_of(left)
    assert lost["seconds"] < 60
    assert load_latest(report["out"] / "rank killed" / "checkpoints").step == 2  # type: ignore[union-attr]


def test_a_signal_to_one_process_ends_all_after_the_same_step(report: dict[str, Any]) -> None:
    ended = report["rank_ended"]["ranks"]
    assert [rank["code"] for rank in ended] == [143, 143], ended
    steps = re.findall(r"stopped after step (\d) of 8", ended[0]["errors"])
    assert f"step-0000000{steps[0]}" in ended[0]["checkpoints"]
    assert [rank["code"] for rank in report["rank_ended_resumed"]["ranks"]] == [0, 0], report["rank_ended_resumed"]
    assert report["rank_ended_resumed"]["weights"] == report["together_2"]["weights"]


def test_shares_of_an_evaluation_come_together_once_each(report: dict[str, Any]) -> None:
    [[alone, _]] = report["shares"]["1"]
    assert alone[0] == [0, 0, 2, 2, 2, 3]  # two detections in the first image, none in the second
    assert [rows for rows, _ in report["shares"]["3"]] == [alone] * 3


def test_the_first_process_decides_on_the_precision(report: dict[str, Any]) -> None:
    assert [chosen for _, chosen in report["shares"]["3"]] == ["fp32"] * 3
