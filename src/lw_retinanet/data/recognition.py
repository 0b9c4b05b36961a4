"""What a path holds, found from its content: the annotation form, and what to read for each split."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lw_retinanet.data import csv_table, voc_xml
from lw_retinanet.data.coco_json import read_coco
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Records
from lw_retinanet.data.yolo_lists import read_yolo_file
from lw_retinanet.data.yolo_txt import read_yolo
from lw_retinanet.errors import DataError

Form = Literal["coco", "voc", "yolo", "csv"]
WHOLE = ""  # the split of a source that has none
_SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")
_FORMS = (
    "train.json and val.json with images/, COCO's annotations/ folder, a Roboflow export, VOC's Annotations/ folder, a YOLO data.yaml "
    "or obj.data, or a CSV table"
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split of a data source.

    Args:
        form: which reader it needs.
        path: what the reader opens.
        root: the image folder where the layout fixes it.
        split: the reader's own name of the split, None where the file or folder has none.
    """

    form: Form
    path: Path
    root: Path | None = None
    split: str | None = None

    def read(self, problems: Problems | None = None) -> Records:
        """Read it; with ``problems`` tolerantly, as the readers do."""
        if self.form == "coco":
            return read_coco(self.path, self.root, problems=problems)
        if self.form == "voc":
            return voc_xml.read_voc(self.path, split=self.split, problems=problems)
        if self.form == "yolo":
            return read_yolo(self.path, split=self.split, problems=problems)
        return csv_table.read_csv(self.path, self.root, split=self.split, problems=problems)


def recognise(source: Path) -> Mapping[str, Part]:
    """The splits of a source by the layout's own names; the only key is `WHOLE` where it has none.

    Raises:
        DataError: if the path does not exist or holds no known form.
    """
    if source.is_file():
        return _recognise_file(source)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; check the path to the data set")
    if not source.is_dir():
        raise DataError(f"{source}: neither a file nor a folder; pass a data set")
    for recognise_layout in (_ours, _coco_own, _roboflow, _voc, _yolo, _voc_folders, _csv_folder):
        parts = recognise_layout(source)
        if parts:
            return parts
    json_files = sorted(source.glob("*.json"))
    if len(json_files) == 1:
        return _recognise_file(json_files[0])
    if json_files:
        shown = ", ".join(path.name for path in json_files[:5])
        raise DataError(f"{source}: several JSON files ({shown}), none called train.json or val.json; pass the one to use")
    raise DataError(f"{source}: no annotations recognised; expected {_FORMS}")


def _recognise_file(path: Path) -> Mapping[str, Part]:
    try:
        with path.open("rb") as file:
            head = file.read(65536)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if not text:
        raise DataError(f"{path}: the file is empty; pass an annotation file")
    if b"\0" in head:
        raise DataError(f"{path}: not a text file; pass {_FORMS}")
    if text[0] == "{":
        return {WHOLE: Part(form="coco", path=path)}
    if text[0] == "[":
        raise DataError(f"{path}: a JSON list, as detections are written; pass the ground truth's annotation file")
    if text[0] == "<":
        return {WHOLE: Part(form="voc", path=path)}
    header = next(csv.reader([text.split("\n", 1)[0].strip()], delimiter=csv_table.delimiter(text)))
    if csv_table.columns(header) is not None:
        return _csv_parts(path)
    try:
        splits = read_yolo_file(path).splits
    except DataError as error:
        if path.suffix.lower() in (".yaml", ".yml", ".data"):
            raise
        raise DataError(f"{path}: not a known annotation form; pass {_FORMS}") from error
    if not splits:
        raise DataError(f"{path}: names no images; add 'train' and 'val' with a folder or a list of images")
    return {split: Part(form="yolo", path=path, split=split) for split in splits}


def _ours(folder: Path) -> Mapping[str, Part]:
    root = folder / "images" if (folder / "images").is_dir() else None
    return {split: Part(form="coco", path=path, root=root) for split, path in _existing(folder, "{}.json").items()}


def _existing(folder: Path, pattern: str) -> dict[str, Path]:
    paths = {split: folder / pattern.format(split) for split in _SPLIT_FOLDERS}
    return {split: path for split, path in paths.items() if path.is_file()}


def _coco_own(folder: Path) -> Mapping[str, Part]:
    annotations = folder / "annotations"
    files = sorted(annotations.glob("instances_*.json"), reverse=True)
    by_split: dict[str, Path] = {}
    for path in files:  # the newest year of a split comes first
        by_split.setdefault(path.stem.removeprefix("instances_").rstrip("0123456789").rstrip("_-"), path)
    by_split = by_split or _existing(annotations, "{}.json")
    order = sorted(by_split, key=lambda split: (_SPLIT_FOLDERS.index(split) if split in _SPLIT_FOLDERS else len(_SPLIT_FOLDERS), split))
    return {split: Part(form="coco", path=by_split[split]) for split in order}


def _roboflow(folder: Path) -> Mapping[str, Part]:
    if (folder / "_annotations.coco.json").is_file():
        return {WHOLE: Part(form="coco", path=folder / "_annotations.coco.json", root=folder)}
    paths = _existing(folder, "{}/_annotations.coco.json")
    return {split: Part(form="coco", path=path, root=path.parent) for split, path in paths.items()}


def _voc(folder: Path) -> Mapping[str, Part]:
    if not (folder / "Annotations").is_dir():
        return {}
    splits = voc_xml.split_names(folder)
    return {split: Part(form="voc", path=folder, split=split) for split in splits} or {WHOLE: Part(form="voc", path=folder)}


def _voc_folders(folder: Path) -> Mapping[str, Part]:
    if next(folder.glob("*.xml"), None) is not None:
        return {WHOLE: Part(form="voc", path=folder)}
    folders = {split: folder / split for split in _SPLIT_FOLDERS}
    return {split: Part(form="voc", path=path) for split, path in folders.items() if next(path.glob("*.xml"), None) is not None}


def _yolo(folder: Path) -> Mapping[str, Part]:
    named = [folder / name for name in ("data.yaml", "data.yml", "dataset.yaml", "obj.data") if (folder / name).is_file()]
    if named:
        return _recognise_file(named[0])
    others = sorted(path for pattern in ("*.yaml", "*.yml", "*.data") for path in folder.glob(pattern))
    return _recognise_file(others[0]) if len(others) == 1 else {}


def _csv_folder(folder: Path) -> Mapping[str, Part]:
    by_split = _existing(folder, "{}.csv")
    if by_split:
        return {split: Part(form="csv", path=path) for split, path in by_split.items()}
    files = sorted(folder.glob("*.csv"))
    return _recognise_file(files[0]) if len(files) == 1 else {}


def _csv_parts(path: Path) -> Mapping[str, Part]:
    splits = csv_table.split_names(path)
    return {split: Part(form="csv", path=path, split=split) for split in splits} or {WHOLE: Part(form="csv", path=path)}
