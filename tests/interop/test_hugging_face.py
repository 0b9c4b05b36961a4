import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.counting.profile import profile
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError, MissingExtraError, OutputError, WeightsError
from lw_retinanet.heads import PRESETS
from lw_retinanet.interop.hugging_face import from_pretrained, push_to_hub, save_pretrained
from lw_retinanet.models.build import build
from lw_retinanet.weights.model_file import load_model, make_record, save_model

CATEGORIES = (Category(id=3, name="cod"), Category(id=9, name="ray"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its model file and metrics; the model detects something in every image."""
    torch.manual_seed(0)
    conventions = Conventions(input=InputRule(size=72))
    model = build(PRESETS["lw-v3"], num_classes=2, backbone="resnet18", width=16, conventions=conventions).eval()
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if "predict" in name:
                parameter.normal_(std=0.2)
    record = make_record(
        model,
        preset="lw-v3",
        backbone="resnet18",
        width=16,
        norm="frozen",
        plan=PRESETS["lw-v3"],
        categories=CATEGORIES,
        notes={"data": "sea"},
    )
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_model(folder / "model.safetensors", model, record)
    (folder / "metrics.json").write_text(json.dumps({"AP": 0.25, "APs": 0.125, "images": 3}))
    return folder


def front_matter(folder: Path) -> Any:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def scores(detector: Detector) -> Any:
    image = np.random.default_rng(0).integers(0, 255, (64, 72, 3), dtype=np.uint8)
    return detector.predict(image)[0].scores


def test_a_model_comes_back_from_its_folder(run: Path, tmp_path: Path) -> None:
    folder = save_pretrained(run, tmp_path / "out", licence="mit")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    loaded = load_model(run)
    detector = from_pretrained(folder, device="cpu")
    expected = scores(Detector.of_model(loaded.model, CATEGORIES))
    assert len(expected) > 0
    assert np.array_equal(scores(detector), expected)
    assert detector.categories == CATEGORIES
    assert np.array_equal(scores(from_pretrained(str(folder / "model.safetensors"), device="cpu")), expected)


def test_the_files_say_what_was_measured(run: Path, tmp_path: Path) -> None:
    folder = save_pretrained(run, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    # Images of 72 pixels are padded to 96, and that is what is counted.
    assert config["size_hw"] == [96, 96]
    assert config["macs"] == profile(load_model(run).model, name="", size_hw=(96, 96)).macs
    assert config["params"] == sum(parameter.numel() for parameter in load_model(run).model.parameters())
    assert config["metrics"] == {"AP": 0.25, "APs": 0.125}
    front = front_matter(folder)
    assert (front["license"], front["model-index"][0]["results"][0]["dataset"]["name"]) == ("other", "sea")
    assert f'from_pretrained("{folder}")' in (folder / "README.md").read_text()
    # A loaded model stands beside no metrics.json; what is given counts.
    given = save_pretrained(load_model(run), tmp_path / "given", metrics={"AP": 0.5}, dataset="ada/sea")
    assert json.loads((given / "config.json").read_text())["metrics"] == {"AP": 0.5}
    assert front_matter(given)["datasets"] == ["ada/sea"]


def test_a_card_that_is_there_is_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("written with care")
    (tmp_path / "config.json").write_text("old")
    save_pretrained(run, tmp_path)
    assert (tmp_path / "README.md").read_text() == "written with care"
    assert json.loads((tmp_path / "config.json").read_text())["preset"] == "lw-v3"


def test_a_run_folder_can_be_made_ready_in_place(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    save_pretrained(folder, folder)
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert front_matter(folder)["library_name"] == "lw-retinanet"


def test_bad_input_writes_nothing(run: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "file"
    file.write_text("")
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / "metrics.json").write_text("{")
    bare = Detector.of_model(load_model(run).model, CATEGORIES)
    bare.__dict__.pop("record", None)
    cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (InputError, "licence 'MIT license' is not an identifier", run, {"licence": "MIT license"}),
        (InputError, "metrics: expected a mapping with AP", run, {"metrics": {"ap": 1}}),
        (InputError, r"cannot read .*broken/metrics\.json", broken, {}),
        (InputError, "no record of its architecture", bare, {}),
        (WeightsError, "gone does not exist", tmp_path / "gone", {}),
    ]
    for error, part, model, options in cases:
        with pytest.raises(error, match=part):
            save_pretrained(model, out, **options)
    with pytest.raises(OutputError, match="file is a file"):
        save_pretrained(run, file)
    assert not out.exists()


class Hub:
    """Stands in for ``huggingface_hub``: records its calls, and returns a result or raises an error."""

    def __init__(self, answer: Path | Exception, *, has_card: bool = False) -> None:
        self.answer, self.has_card = answer, has_card
        self.calls: list[tuple[Any, ...]] = []
        self.files: dict[str, bytes] = {}

    def _say(self) -> str:
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)

    def hf_hub_download(self, repo_id: str, filename: str, **options: Any) -> str:
        self.calls.append((repo_id, filename, options))
        return self._say()

    def HfApi(self, token: str | None = None) -> "Hub":  # noqa: N802  (the name that it stands in for)
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append((repo_id, options))

    def file_exists(self, repo_id: str, filename: str, **_: Any) -> bool:
        return self.has_card

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> Any:
        self.files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        return SimpleNamespace(commit_url=self._say())


def test_a_repository_is_fetched_and_only_its_model_file(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub(run / "model.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    detector = from_pretrained("ada/fish", revision="v1", token="secret", cache_dir="cache", device="cpu")
    assert hub.calls == [("ada/fish", "model.safetensors", {"revision": "v1", "token": "secret", "cache_dir": "cache"})]
    assert detector.name == "ada/fish (lw-v3)"
    # What lies here by that name is meant first, as everywhere else on the hub's side.
    save_pretrained(run, Path("ada/fish"))
    from_pretrained("ada/fish", device="cpu")
    assert len(hub.calls) == 1


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("RepositoryNotFoundError", "no such repository, or a private one"),
        ("RevisionNotFoundError", "no such revision"),
        ("EntryNotFoundError", "holds no model.safetensors"),
        ("LocalEntryNotFoundError", "the hub cannot be reached"),
        ("OfflineModeIsEnabled", "offline mode is on"),
        ("SomethingNewError", "first line"),
    ],
)
def test_a_hub_that_does_not_give_is_one_clear_line(name: str, part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = type(name, (OSError,), {})("first line\nsecond line")
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(error))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=part) as caught:
        from_pretrained("ada/fish", revision="v1")
    assert "ada/fish at v1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hubs_own_errors_are_known() -> None:
    # The reasons are found by class name; a name that the library no longer has would silently lose its line.
    errors = pytest.importorskip("huggingface_hub.errors")
    from lw_retinanet.interop.hugging_face import _REASONS

    assert all(hasattr(errors, name) for name in _REASONS)
    local = errors.LocalEntryNotFoundError
    assert next(name for name in _REASONS if name in {base.__name__ for base in local.__mro__}) == "LocalEntryNotFoundError"
    gated = errors.GatedRepoError
    assert next(name for name in _REASONS if name in {base.__name__ for base in gated.__mro__}) == "GatedRepoError"


@pytest.mark.parametrize("source", ["gone", "./gone", "a/b/c", "../a", "a b/c", "ada/fish.safetensors", "https://huggingface.co/ada/fish"])
def test_what_is_no_repository_is_not_asked_for(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="give a folder, a model file or OWNER/NAME"):
        from_pretrained(source)
    assert not hub.calls


def test_without_the_extra_it_is_named(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    for call in (lambda: from_pretrained("ada/fish"), lambda: push_to_hub(run, "ada/fish")):
        with pytest.raises(MissingExtraError, match=r"pip install 'lw-retinanet\[hub\]'"):
            call()
    assert scores(from_pretrained(run, device="cpu")) is not None  # a folder needs nothing


def test_pushing_uploads_the_folder_and_keeps_a_card(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(Path("commit/1"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert push_to_hub(run, "ada/fish", private=True, token="secret", licence="mit") == str(Path("commit/1"))
    assert hub.calls == [("token", "secret"), ("ada/fish", {"private": True, "exist_ok": True})]
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    assert hub.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert b'lw.from_pretrained("ada/fish")' in hub.files["README.md"]
    hub.has_card = True
    push_to_hub(run, "ada/fish")
    assert sorted(hub.files) == ["config.json", "model.safetensors"]
    hub.answer = PermissionError("403\nlong story")
    with pytest.raises(OutputError, match=r"^cannot upload to ada/fish on the hub: 403$"):
        push_to_hub(run, "ada/fish")
