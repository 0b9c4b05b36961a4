import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from lw_retinanet import __version__

ROOT = Path(__file__).parent.parent
builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
WHEEL = f"lw_retinanet-{__version__}-py3-none-any.whl"
SDIST = f"lw_retinanet-{__version__}.tar.gz"


def build(folder: Path) -> tuple[Path, Path]:
    from hatchling.builders.sdist import SdistBuilder

    next(builders.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    next(SdistBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    return folder / WHEEL, folder / SDIST


def test_wheel_and_sdist_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    (wheel, sdist), again = build(tmp_path / "one"), build(tmp_path / "two")
    assert (wheel.read_bytes(), sdist.read_bytes()) == tuple(path.read_bytes() for path in again)
    assert wheel.stat().st_size < 2**20
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "lw_retinanet").rglob("*.py")}
    others = {name for name in names if not name.endswith(".py")}
    assert names - others == modules
    assert "lw_retinanet/py.typed" in others
    assert all(name.startswith("lw_retinanet/serving/page/") or name.endswith("py.typed") for name in others), others
    with tarfile.open(sdist) as packed_source:
        inside = {name.partition("/")[2] for name in packed_source.getnames()}
    assert {"README.md", "LICENSE", "docs/lightening.md", "tests/test_packaging.py", "src/lw_retinanet/api.py"} <= inside
    assert not [name for name in inside if re.search(r"\.(png|jpg|gif|webp|safetensors)$|__pycache__", name)]


def test_the_workflow_tries_what_the_package_promises() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    oldest = matrix["include"][0]
    assert f">={matrix['python'][0]}" == project["requires-python"]
    assert {f"{name}>={oldest[name]}" for name in ("torch", "torchvision")} <= set(project["dependencies"])
    assert ".ci/run" in [step.get("run") for step in jobs["newcomer"]["steps"]]
