import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lw_retinanet.config import Config
from lw_retinanet.errors import RunFolderError
from lw_retinanet.training.run_folder import RunFolder

MakeConfig = Callable[..., Config]


def test_a_new_run_can_be_reopened_with_its_settings(run_path: Path, make_config: MakeConfig) -> None:
    config = make_config(seed=4)
    with RunFolder.created(run_path, config, {"data": "somewhere", "processes": 2}) as folder:
        assert folder.config_file.is_file()
    with RunFolder.reopened(run_path) as (folder, found, notes):
        assert found == config
        assert notes == {"data": "somewhere", "processes": 2}
        assert folder.path == run_path


def test_a_folder_with_anything_in_it_is_left_alone(run_path: Path, make_config: MakeConfig) -> None:
    run_path.mkdir()
    (run_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunFolderError, match=r"run is not empty; .*resume"), RunFolder.created(run_path, make_config(), {}):
        pass
    assert [child.name for child in run_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_place_of_the_folder_is_left_alone(run_path: Path, make_config: MakeConfig) -> None:
    run_path.write_text("precious")
    with pytest.raises(RunFolderError), RunFolder.created(run_path, make_config(), {}):
        pass
    assert run_path.read_text() == "precious"


def test_an_empty_folder_is_welcome(run_path: Path, make_config: MakeConfig) -> None:
    run_path.mkdir()
    with RunFolder.created(run_path, make_config(), {}):
        pass


def test_nothing_to_resume(run_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"), RunFolder.reopened(run_path):
        pass
    assert not run_path.exists()


def test_two_at_once_are_one_too_many(run_path: Path, make_config: MakeConfig) -> None:
    # From another process, as it happens in life.
    script = (
        "import sys; from pathlib import Path; from lw_retinanet.training.run_folder import RunFolder\n"
        "from lw_retinanet.errors import RunFolderError\n"
        "try:\n    with RunFolder.reopened(Path(sys.argv[1])): print('in')\n"
        "except RunFolderError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(run_path)]
    with RunFolder.created(run_path, make_config(), {}):
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "is in use by another process" in answer
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "in\n"


def test_the_log_is_cut_back_to_the_checkpoint(run_path: Path, make_config: MakeConfig) -> None:
    with RunFolder.created(run_path, make_config(), {}) as folder:
        folder.trim_log(3)  # nothing was logged yet
        for step in range(1, 6):
            folder.log({"step": step, "loss": 1 / step})
        folder.log({"step": 3, "AP": 0.5})
        with folder.log_file.open("a") as file:
            file.write('{"step": 6, "lo')  # what the killed process was writing
        folder.trim_log(3)
        folder.log({"step": 4, "loss": 0.0})
        entries = [json.loads(line) for line in folder.log_file.read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 3, 4]
    assert entries[3] == {"step": 3, "AP": 0.5}
    assert entries[-1]["loss"] == 0.0
