"""What the package promises about itself as a whole: who imports whom, what is public, what starts fast, what is never called."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lw_retinanet
from lw_retinanet.config import setting_names

PACKAGE = Path(lw_retinanet.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# May be imported by all, and import only one another.
FOUNDATION = {
    "errors",
    "backbones",
    "heads",
    "config",
    "conventions",
    "structures",
    "boxes",
    "files",
    "locks",
    "stopping",
    "yaml_file",
    "devices",
    "command_line",
    "drawing",
    "page",
    "page_figure",
    "tables",
    "progress",
}
STAGES = {
    "data": 1,
    "models": 2,
    "weights": 3,
    "detection": 4,
    "counting": 5,
    "training": 6,
    "evaluation": 6,
    "lightening": 7,
    "exporting": 8,
    "interop": 9,
    "benchmarking": 10,
    "reporting": 10,
    "jobs": 11,
    "tradeoff": 12,
    "serving": 12,
    "api": 13,
    "cli": 14,
}
# Detectron and Detectron2 publish pickles; this reader builds NumPy arrays from them and refuses every other name.
MAY_UNPICKLE = "weights/foreign/pickled_arrays.py"


def part(module: str) -> str:
    """``data`` for ``lw_retinanet.data.images``, ``errors`` for ``lw_retinanet.errors``, '' for the package itself."""
    return f"{module}.".split(".")[1]


def imports(path: Path) -> Iterator[str]:
    """Full names of the package's own modules that a file imports, anywhere in it."""
    package = ["lw_retinanet", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            names = [".".join([*base, *([node.module] if node.module else [])])]
            names = [f"{names[0]}.{alias.name}" for alias in node.names] if names[0] == "lw_retinanet" else names
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "lw_retinanet")


def test_imports_only_go_back() -> None:
    wrong = []
    for path in MODULES:
        name = path.relative_to(PACKAGE)
        here = name.parts[0].removesuffix(".py")
        if here in ("__init__", "__main__"):
            continue  # the one names its public parts and imports none of them by itself (see below), the other is the command line
        assert here in FOUNDATION or here in STAGES, f"{name} has no place in the layout"
        for target in map(part, imports(path)):
            is_fine = (
                target in FOUNDATION
                or target == here
                or target == "__version__"
                or (here in STAGES and target in STAGES and STAGES[target] < STAGES[here])
            )
            if not is_fine:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_public_names_are_sorted_and_all_there() -> None:
    assert lw_retinanet.__all__ == sorted(lw_retinanet.__all__)
    assert set(lw_retinanet.__all__) == set(lw_retinanet._HOMES)
    for name in lw_retinanet.__all__:
        assert getattr(lw_retinanet, name).__name__ == name
    assert set(lw_retinanet.__all__) <= set(dir(lw_retinanet))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lw_retinanet.nonsense  # noqa: B018


@pytest.mark.parametrize("what", ["import lw_retinanet", "import lw_retinanet.cli.main as m; m._run(['--help'], False)"])
def test_start_is_cheap(what: str) -> None:
    code = (
        f"import sys\n{what}\nprint([name for name in ('torch', 'numpy', 'pydantic', 'PIL', 'matplotlib', 'yaml') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_help_of_every_command_is_cheap() -> None:
    single = [
        "quickstart",
        "profile",
        "train",
        "convert",
        "lighten",
        "evaluate",
        "compare",
        "predict",
        "export",
        "benchmark",
        "report",
        "ship",
        "serve",
    ]
    commands = [*([name] for name in single), ["data", "check"], ["data", "convert"]]
    code = f"import sys\nimport lw_retinanet.cli.main as m\nfor c in {commands}: assert m._run([*c, '--help'], False) == 0"
    run = subprocess.run([sys.executable, "-c", f"{code}\nprint('torch' in sys.modules)"], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call with its dotted name as written."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_runs_code_that_a_file_brought_along() -> None:
    wrong = []
    for path in MODULES:
        tree = TREES[path]
        loaded = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        loaded |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        forbidden = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
        if path.relative_to(PACKAGE).as_posix() == MAY_UNPICKLE:
            forbidden.remove("pickle")
        wrong += [f"{path.name}: {name}" for name in loaded & forbidden]
        for name, call in calls(path):
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            is_guarded_load = name in ("torch.load", "torch.hub.load_state_dict_from_url") or name.endswith(".get_state_dict")
            if (
                name in ("eval", "exec", "compile", "__import__", "os.system", "yaml.load", "yaml.full_load", "yaml.unsafe_load")
                or name in ("pickle.load", "pickle.loads")  # without limits, even where the module may be used
                or (is_guarded_load and settings.get("weights_only") != "True")
                or settings.get("allow_pickle") == "True"
                or settings.get("shell") == "True"
            ):
                wrong.append(f"{path.name}:{call.lineno}: {name}")
    assert not wrong


def test_only_the_command_line_prints() -> None:
    outside = [path for path in MODULES if "cli" not in path.parts]
    assert len(outside) > 40
    assert not [f"{path.name}:{call.lineno}" for path in outside for name, call in calls(path) if name in ("print", "sys.stdout.write")]


def definitions(tree: ast.AST, *, is_private: bool = False, is_inner: bool = False) -> Iterator[tuple[Definition, bool, bool]]:
    """Every function and class; whether its name, or one around it, starts with an underscore; whether it stands in a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            hidden = is_private or node.name.startswith("_")
            yield node, hidden, is_inner
            yield from definitions(node, is_private=hidden, is_inner=is_inner or not isinstance(node, ast.ClassDef))
        else:
            yield from definitions(node, is_private=is_private, is_inner=is_inner)


def place(path: Path, node: ast.stmt | ast.expr) -> str:
    """``data/images.py:12``."""
    return f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"


def test_functions_fit_on_a_screen() -> None:
    lengths = {
        f"{place(path, node)} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in TREES.items()
        for node, _, _ in definitions(tree)
        if not isinstance(node, ast.ClassDef)
    }
    long = {name: length for name, length in lengths.items() if length > 60}
    assert max(long.values(), default=0) <= 80, long
    assert len(long) <= 4, long


def test_public_definitions_say_what_they_do() -> None:
    missing = [
        f"{place(path, node)} {node.name}"
        for path, tree in TREES.items()
        for node, is_private, is_inner in definitions(tree)
        if not (is_private or is_inner or ast.get_docstring(node) or "overload" in map(ast.unparse, node.decorator_list))
    ]
    assert not missing


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path, tree in TREES.items():
        for node, _, is_inner in definitions(tree):
            if isinstance(node, ast.ClassDef) and not is_inner:
                places.setdefault(node.name, []).append(place(path, node))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_imports_stand_at_the_top_unless_they_must_be_late() -> None:
    late = [
        place(path, inner)
        for path, tree in TREES.items()
        for node, _, _ in definitions(tree)
        if not isinstance(node, ast.ClassDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("lw_retinanet")
    ]
    assert len(set(late)) <= 40, late


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {".".join(["lw_retinanet", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in MODULES}
    imported: dict[str, set[str]] = {}
    for name, path in names.items():
        found = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.ImportFrom) and node.module]
        targets = {target for node in found for target in (str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names))}
        imported[name] = (targets & names.keys()) - {name}
    while free := {name for name, targets in imported.items() if not targets}:
        imported = {name: targets - free for name, targets in imported.items() if name not in free}
    assert not imported


def test_only_the_command_line_speaks_of_options() -> None:
    """Messages and docstrings of the library name parameters and settings."""
    allowed = {
        "benchmarking/machine.py",
        "page.py",
        "page_figure.py",
        "data/video.py",
    }  # options of git and pip, and CSS
    wrong = [
        place(path, node) + f" {found[0]}"
        for path, tree in TREES.items()
        if "cli" not in path.parts and path.relative_to(PACKAGE).as_posix() not in allowed
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (found := re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value))
    ]
    assert not wrong


def test_settings_of_the_contract_exist() -> None:
    contract = """
        model.preset model.backbone model.backbone_weights model.head_width
        data.image_size data.workers data.augment
        train.epochs train.steps train.batch_size train.accumulate train.rate train.recipe train.schedule train.seed train.precision
        train.save_every train.freeze
    """
    assert set(contract.split()) <= set(setting_names())


def test_typed_marker_is_there() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert all(path.stat().st_size == 0 for path in PACKAGE.glob("*/__init__.py"))
