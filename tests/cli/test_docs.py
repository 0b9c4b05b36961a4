"""The documentation is true: its commands exist, its Python calls exist, its links lead somewhere, and its blocks run."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main
from tests.cli.conftest import Cli
from tests.cli.docs_blocks import PAGES, ROOT, Block, blocks, command_lines, inline_code, our_arguments

import lw_retinanet as lw
from lw_retinanet.cli.main import _joined_size, app

PROGRAM: Any = typer.main.get_command(app)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RUN = [page for page in PAGES if page.parent.name in ("start", "howto", "explanation")]
# An option of a script in benchmarks/ that a page mentions by itself.
FOREIGN = {"--batch"}


def problem(arguments: list[str], *, whole: bool) -> str | None:
    """What is wrong with a command, without running it. ``whole``: nothing that it needs may be missing."""
    if any(argument.startswith("[-") for argument in arguments):  # what may be left out stands in brackets
        arguments = [argument.removeprefix("[").removesuffix("]") for argument in arguments]
    command, rest = PROGRAM, [argument for argument in _joined_size(arguments) if argument not in ("...", "--debug")]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return None if rest[0] == "COMMAND" else f"no command {rest[0]}"
        command = command.commands[rest.pop(0)]
    if "--help" in rest:
        return None
    try:
        values, extra, _ = command.make_parser(command.context_class(command)).parse_args(rest)
    except Exception as error:
        return str(error)
    if extra:
        return f"unexpected {extra}"
    missing = [entry.name for entry in command.params if entry.required and not isinstance(values.get(entry.name), str | tuple | list)]
    return f"missing {missing}" if whole and missing else None


def wrong_commands(page: Path) -> Iterator[str]:
    for block in blocks(page):
        for words in command_lines(block.code) if block.language in ("", "sh", "text", "console") else ():
            arguments = our_arguments(words)
            if arguments and (found := problem(arguments, whole=True)):
                yield f"{page.name}:{block.line}: {' '.join(words)}: {found}"
    options = {name for command in all_commands() for entry in command.params for name in (*entry.opts, *entry.secondary_opts)}
    for code in inline_code(page):
        for words in command_lines(code):
            arguments = our_arguments(words)
            if arguments is None and words[0] in PROGRAM.commands and any(word.startswith("--") for word in words):
                arguments = words
            # In a sentence an option may stand without its value.
            if arguments and (found := problem(arguments, whole=False)) and problem([*arguments, "VALUE"], whole=False):
                yield f"{page.name}: {code}: {found}"
            elif words[0].startswith("--") and words[0].split("=")[0] not in options | FOREIGN | {"--help", "--debug"}:
                yield f"{page.name}: {code}: no command has this option"


def all_commands() -> list[Any]:
    return [PROGRAM, *PROGRAM.commands.values(), *PROGRAM.commands["data"].commands.values()]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_options_exist(page: Path) -> None:
    assert not list(wrong_commands(page))


def test_a_wrong_command_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nlw-retinanet trian my_data\nlw-retinanet train my_data --epochs 3 && lw-retinanet lighten a.safetensors \\\n    --to x\n"
        "torchrun -m lw_retinanet train d --gpus 2\n```\n"
        "Use `predict --heads full`, or `lw-retinanet data checks`,\nor `--nonsense`; but not\n\n    lw-retinanet compare a b c --data d\n"
    )
    expected = [
        "no command trian",
        "--epochs",
        "missing ['out']",
        "--gpus",
        "unexpected ['c']",
        "--heads",
        "no command checks",
        "--nonsense",
    ]
    found = list(wrong_commands(page))
    assert [part in line for part, line in zip(expected, found, strict=True)] == [True] * len(expected), found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_calls_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language != "python":
            continue
        for call in ast.walk(ast.parse(block.code)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "lw":
                keywords = {entry.arg: None for entry in call.keywords if entry.arg}
                function = getattr(lw, call.func.attr)
                inspect.signature(inspect.unwrap(function)).bind(*call.args, **keywords)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


TINY: dict[str, dict[str, Any]] = {
    "model": {"backbone": "mobilenet_v2", "backbone_weights": "none", "head_width": 16},
    "data": {"image_size": 64, "workers": 0},
    "train": {"steps": 2, "batch_size": 2, "precision": "fp32"},
}


def small(arguments: list[str]) -> list[str]:
    """The same command with settings that make it short."""
    command = arguments[0]
    if command == "train" and "--dry-run" not in arguments:
        starts = any(argument.endswith(".safetensors") for argument in arguments)
        sections = [section for section in TINY if not (starts and section == "model")]
        return arguments + [
            part for section in sections for name, value in TINY[section].items() for part in ("--set", f"{section}.{name}={value}")
        ]
    extra = {"lighten": ["--fit-steps", "2", "--images", "4", "--no-latency"], "compare": ["--draws", "100"]}
    extra["benchmark"] = ["--rounds", "2", "--warm-up", "1"]
    return arguments + extra.get(command, [])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Iterator[Path]:
    """The files that the pages take for granted: data sets, a trained run, a lightened model, images and a list of them."""
    from lw_retinanet.data.sample import make_sample

    folder = tmp_path_factory.mktemp("docs")
    data = make_sample(folder / "my_data", num_train=8, num_val=20, size=64)
    for name in ("coco", "voc", "yolo", "csv"):
        assert cli("data", "convert", data, "--to", name, "--out", folder / f"my_{name}").code == 0
    shutil.copytree(data, folder / "undivided")
    (folder / "undivided" / "val.json").unlink()
    lw.train(data, model="retinanet", config=TINY, out=folder / "runs" / "mine", device="cpu")
    model = shutil.copy(folder / "runs" / "mine" / "model.safetensors", folder / "mine.safetensors")
    assert cli(*small(["lighten", str(model), "--data", str(data), "--out", str(folder / "light.safetensors")])).code == 0
    (folder / "images").mkdir()
    images = [shutil.copy(data / "images" / f"val_000{number}.jpg", folder / "images") for number in (1, 2, 3)]
    (folder / "list.txt").write_text("".join(f"{image}\n" for image in images))
    shutil.copytree(ROOT / "configs", folder / "configs")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run_block(place: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[[Block, dict[str, Any]], None]:
    """Runs a block in a copy of the place, which all blocks of a page share."""
    folder = tmp_path / "copy"
    shutil.copytree(place, folder)
    monkeypatch.chdir(folder)
    train, lighten = lw.train, lw.lighten

    def small_train(*args: Any, config: Mapping[str, Mapping[str, Any]] | None = None, **others: Any) -> lw.Run:
        return train(*args, config={name: {**(config or {}).get(name, {}), **TINY[name]} for name in TINY}, **others)

    monkeypatch.setattr(lw, "train", small_train)
    monkeypatch.setattr(lw, "lighten", lambda *args, **others: lighten(*args, fit_steps=2, **others))

    def run(block: Block, names: dict[str, Any]) -> None:
        if block.language == "python":
            exec(compile(block.code, f"line {block.line}", "exec"), names)
        for words in command_lines(block.code) if block.language == "sh" else ():
            arguments = our_arguments(words)
            assert arguments, f"line {block.line}: {words} is not run by this test; mark the block with its reason"
            if arguments[0] in ("convert", "lighten"):  # the pages make what the place has
                Path(arguments[arguments.index("--out") + 1]).unlink(missing_ok=True)
            outcome = cli(*small(arguments))
            assert outcome.code == 0, (words, outcome.err, outcome.out[-500:])

    return run


@pytest.mark.parametrize("page", RUN, ids=[page.stem for page in RUN])
def test_blocks_run(page: Path, run_block: Callable[[Block, dict[str, Any]], None]) -> None:
    names: dict[str, Any] = {}
    if "torchvision_retinanet" in page.read_text(encoding="utf-8"):
        names["torchvision_retinanet"] = small_torchvision()
    for block in blocks(page):
        if block.mark.startswith("not run: ") or block.mark == "slow":
            continue
        run_block(block, names)


def small_torchvision() -> Any:
    import torch
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    backbone: Any = torch.nn.Conv2d(3, 128, kernel_size=8, stride=8)
    backbone.out_channels = 128
    anchors = AnchorGenerator(sizes=((16, 32),), aspect_ratios=((1.0,),))
    return RetinaNet(backbone, num_classes=3, anchor_generator=anchors, min_size=64, max_size=64)


def test_json_keys_are_those_of_the_page(cli: Cli, place: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "contracts.md").read_text(encoding="utf-8")
    table = page.split("<!-- contract: json -->")[1].split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    stated = {command.strip(" `"): re.findall(r"`(\w+)`", keys) for command, keys in rows}
    model, data = place / "runs" / "mine", place / "my_data"
    printed = {
        "profile": cli("profile", model, "--json"),
        "evaluate": cli("evaluate", model, data, "--json"),
        "compare": cli("compare", model, model, "--data", data, "--draws", 100, "--json"),
        "predict": cli("predict", model, place / "images", "--out", tmp_path / "found", "--json"),
    }
    assert {command: sorted(outcome.json) for command, outcome in printed.items()} == {
        command: sorted(keys) for command, keys in stated.items()
    }


@pytest.mark.slow
def test_convert_block_runs(run_block: Callable[[Block, dict[str, Any]], None]) -> None:
    import torch
    from torchvision.models.detection import retinanet_resnet50_fpn

    torch.save(retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), "retinanet.pth")
    slow = [block for page in RUN for block in blocks(page) if block.mark == "slow"]
    assert len(slow) == 1
    run_block(slow[0], {})


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser", "fastapi"):
        pytest.importorskip(package)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        str(ROOT / "docs"),
        str(tmp_path / "site"),
        "-d",
        str(tmp_path / "trees"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert run.returncode == 0, run.stderr
    pages = {
        page.relative_to(tmp_path / "site").as_posix(): page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")
    }
    for entry in ("predict", "data-split", "selfcheck"):
        assert f'id="lw-retinanet-{entry}"' in pages["reference/commands.html"]
    assert "POST /detect" in pages["reference/contracts.html"]
    assert all(f'id="lw_retinanet.{name}"' in pages["reference/python.html"] for name in lw.__all__)
    # Nothing is loaded from another host.
    loaded = re.compile(r"""<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+rel="(?:stylesheet|preload)"[^>]+href="https?:""")
    assert [name for name, text in pages.items() if loaded.search(text)] == []
