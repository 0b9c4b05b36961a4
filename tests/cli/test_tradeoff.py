"""``lw-retinanet tradeoff``: from an experiment file to table, figures and report, and what is refused."""

import csv
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from lw_retinanet.weights.model_file import load_model, save_model


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with enough validation images for an interval."""
    from lw_retinanet.data.sample import make_sample

    return make_sample(tmp_path_factory.mktemp("sample") / "shapes", num_train=6, num_val=20, size=64)


@pytest.fixture(scope="module")
def experiment(many: Path, full_and_light: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        "name": "small & quick",
        "data": str(many),
        "trunk": str(full_and_light[0]),
        "seeds": [0, 1],
        "settings": {"train": {"steps": 2, "batch_size": 2, "precision": "fp32"}},
        "draws": 100,
        "lines": [
            {"name": "scaling", "variants": ["retinanet"], "scales": [96, 64]},
            {"name": "blocks", "variants": ["lw-v3", "bbox-v1", {"preset": "bbox-v1", "init": "paper"}], "scales": [96]},
        ],
    }
    path = tmp_path_factory.mktemp("experiment") / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def done(cli: Any, experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("done") / "out"
    outcome = cli("tradeoff", experiment, "--out", out, "--json")
    assert outcome.code == 0, outcome
    return out, outcome.json


def test_every_row_is_run_counted_measured_and_judged(done: tuple[Path, Any]) -> None:
    out, said = done
    assert [(row["line"], row["variant"], row["scale"]) for row in said["rows"]] == [
        ("scaling", "retinanet", 96),
        ("scaling", "retinanet", 64),
        ("blocks", "lw-v3", 96),
        ("blocks", "bbox-v1", 96),
        ("blocks", "bbox-v1, init paper", 96),
    ]
    assert all(len(row["aps"]) == 2 and row["latency_ms"] > 0 for row in said["rows"])
    assert "Initialisation of bbox-v1" in " ".join(said["verdict"])
    with (out / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["macs"]) for row in table] == [row["macs"] for row in said["rows"]]
    page = (out / "report.html").read_text()
    assert "small &amp; quick" in page
    assert said["verdict"][0].split(".")[0] in page
    assert all(Path(file).is_file() for file in said["files"])


def test_the_command_of_a_row_repeats_it(cli: Any, done: tuple[Path, Any], tmp_path: Path) -> None:
    row = done[1]["rows"][2]
    program, *arguments = shlex.split(row["command"])
    assert program == "lw-retinanet"
    arguments[arguments.index("--out") + 1] = str(tmp_path / "again")
    outcome = cli(*arguments, "--no-latency", "--json")
    assert outcome.code == 0, outcome
    (again,) = outcome.json["rows"]
    assert again["aps"] == row["aps"]
    assert again["macs"] == row["macs"]


def test_paths_that_were_given_are_part_of_the_commands(cli: Any, experiment: Path, many: Path, done: tuple[Path, Any]) -> None:
    outcome = cli("tradeoff", experiment, "--data", many, "--out", done[0], "--report-only", "--json")
    assert outcome.code == 0, outcome
    assert all(f"--data {many} --out again" in row["command"] for row in outcome.json["rows"])


def test_a_finished_experiment_runs_nothing_and_says_the_same(
    cli: Any, experiment: Path, done: tuple[Path, Any], folder_state: Any
) -> None:
    out, said = done
    before = folder_state(out / "runs")
    outcome = cli("tradeoff", experiment, "--out", out, "--report-only")
    assert outcome.code == 0, outcome
    assert folder_state(out / "runs") == before
    assert said["verdict"][0] in outcome.out
    assert "lw-v3 @ 96" in outcome.out


def test_what_cannot_be_is_refused_in_one_line(
    cli: Any, experiment: Path, many: Path, done: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    values = yaml.safe_load(experiment.read_text())

    def edited(name: str, **changes: Any) -> Path:
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**values, **changes}))
        return file

    out = tmp_path / "out"
    assert "did you mean lw-v3" in cli.refuses("tradeoff", experiment, "--out", out, "--only", "lw-v3@9", unchanged=tmp_path)
    unknown = edited("unknown", lines=[values["lines"][0], {"name": "b", "variants": ["lw-v9"], "scales": [96]}])
    assert "lw-v9" in cli.refuses("tradeoff", unknown, "--out", out, unchanged=tmp_path)
    small = edited("small", lines=[{"name": "scaling", "variants": ["retinanet"], "scales": [3]}])
    assert "lines.0.scales.0=3" in cli.refuses("tradeoff", small, "--out", out, unchanged=tmp_path)
    longer = edited("longer", settings={"train": {"steps": 3}})
    assert "choose another output folder" in cli.refuses("tradeoff", longer, "--out", done[0], unchanged=done[0])
    assert "too few" in cli.refuses("tradeoff", edited("few", data=str(data)), "--out", out, unchanged=tmp_path)
    assert "does not exist" in cli.refuses("tradeoff", tmp_path / "none.yaml", "--out", out, unchanged=tmp_path)
    loaded = load_model(Path(values["trunk"]))
    classes = tuple(one.model_copy(update={"name": f"other {one.name}"}) for one in loaded.record.classes)
    save_model(tmp_path / "strange.safetensors", loaded.model, loaded.record.model_copy(update={"classes": classes}))
    rule = loaded.record.conventions.input.model_copy(update={"size": 96})
    larger = loaded.record.model_copy(update={"conventions": loaded.record.conventions.model_copy(update={"input": rule})})
    save_model(tmp_path / "larger.safetensors", loaded.model, larger)
    strange = cli.refuses("tradeoff", experiment, "--trunk", tmp_path / "strange.safetensors", "--out", done[0], unchanged=done[0])
    assert "has other classes than" in strange
    two = ("--trunk", values["trunk"], "--trunk", tmp_path / "larger.safetensors")
    assert "are of different sizes" in cli.refuses("tradeoff", experiment, *two, "--out", done[0], unchanged=done[0])
    broken = tmp_path / "broken.yaml"
    broken.write_text("lines: [")
    assert ": not valid YAML" in cli.refuses("tradeoff", broken, "--out", out, unchanged=tmp_path)
    assert "holds no experiment" in cli.refuses("tradeoff", experiment, "--out", many, unchanged=many)


@pytest.mark.parametrize(("content", "said"), [("lines: [", "not valid YAML"), ("- 3", "got list"), ("fingerprints:", "another data")])
def test_a_damaged_record_of_the_experiment_is_one_clear_line(
    cli: Any, experiment: Path, content: str, said: str, done: tuple[Path, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "experiment.yaml").write_text(content)
    line = cli.refuses("tradeoff", experiment, "--out", out, unchanged=out)
    assert said in line
    assert str(out) in line
    assert "unexpected" not in line
