"""The worked example of CONTRIBUTING: a new annotation format is one module of data/formats and its name in the tuple."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lw_retinanet.data import formats
from lw_retinanet.data.check import check
from lw_retinanet.data.convert import convert
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.formats import table
from lw_retinanet.data.sample import make_sample
from lw_retinanet.errors import DataError

MODULE = '''
"""JSON lines: one image a line, with its boxes and their classes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from lw_retinanet.data.records import build_records
from lw_retinanet.data.formats.annotation_format import AnnotationFormat, Files, Part, Parts, Sign, existing_splits, read_text
from lw_retinanet.data.formats.target_files import plain_objects, target_names, without_details
from lw_retinanet.data.image_sizes import known_sizes
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Category, Records


class JsonLines(AnnotationFormat):
    """``train.jsonl`` and ``val.jsonl`` beside ``images/``."""

    name = "json_lines"
    layouts = "train.jsonl with images/"

    def recognise_folder(self, folder: Path, sign: Sign) -> Parts:
        if sign is not Sign.STRUCTURE:
            return {}
        paths = existing_splits(folder, "{}.jsonl")
        return {split: Part(format=self, path=path, root=folder / "images") for split, path in paths.items()}

    def parse(self, path: Path, root: Path | None, split: str | None, problems: Problems) -> Records:
        images = []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            try:
                image = json.loads(line)
                images.append((image["file"], image["size_hw"], [(name, box) for name, box in image["objects"]]))
            except (ValueError, KeyError, TypeError) as error:
                problems.add("malformed_image", f"line {number}: {error!r}")
        objects = [(row, *one) for row, (_, _, objects) in enumerate(images) for one in objects]
        names = sorted({name for _, name, _ in objects})
        return build_records(
            root=root or path.parent,
            file_names=[file for file, _, _ in images],
            sizes_hw=[size_hw for _, size_hw, _ in images],
            image_of_box=[row for row, _, _ in objects],
            boxes_xywh=[box for _, _, box in objects],
            labels=[names.index(name) for _, name, _ in objects],
            categories=[Category(id=label + 1, name=name) for label, name in enumerate(names)],
        )

    def holds(self, records: Records):
        return plain_objects(records)

    def kept(self, splits: Mapping[str, Records]) -> dict[str, Records]:
        return without_details(splits, self.holds)

    def files(self, splits: Mapping[str, Records]) -> Files:
        files: Files = {}
        for split, names in target_names(splits).items():
            records = splits[split]
            files |= {f"images/{name}": records.path(row) for row, name in enumerate(names)}
            files[f"{split}.jsonl"] = lambda records=records, names=names: self._lines(records, names)
        return files

    def _lines(self, records: Records, names: list[str]) -> Iterator[bytes]:
        keep, sizes_hw = self.holds(records), known_sizes(records).tolist()
        for row, name in enumerate(names):
            rows = range(*records.rows(row).indices(records.num_boxes))
            objects = [(records.class_names[records.labels[one]], records.boxes_xywh[one].tolist()) for one in rows if keep[one]]
            yield json.dumps({"file": name, "size_hw": sizes_hw[row], "objects": objects}).encode() + b"\\n"


FORMAT = JsonLines()
'''


@pytest.fixture
def _json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The format above, as if ``json_lines.py`` lay in the package and its name stood in the tuple."""
    folder = tmp_path / "more formats"
    folder.mkdir()
    (folder / "json_lines.py").write_text(MODULE)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    monkeypatch.setattr(table, "FORMATS", (*table.FORMATS, "json_lines"))
    yield
    table._import_format.cache_clear()


@pytest.mark.usefixtures("_json_lines")
def test_a_new_format_is_recognised_read_checked_and_written(tmp_path: Path) -> None:
    original = Dataset.open(make_sample(tmp_path / "shapes", num_train=12, num_val=3))
    splits = {split: original.read(split) for split in original.splits}
    done = convert(splits, "json_lines", tmp_path / "lines")
    assert "image ids are lost: reading it again numbers the images 1, 2, 3..." in done.losses
    lines = Dataset.open(tmp_path / "lines")
    assert lines.splits == ("train", "val")
    assert lines.ready("train").summary() == splits["train"].summary()
    assert check(lines).num_errors == 0
    assert [split.form for split in check(lines).splits] == ["json_lines", "json_lines"]
    # Back to COCO: everything but what the sentence above names.
    convert({split: lines.read(split) for split in lines.splits}, "coco", tmp_path / "back")
    for split, before in splits.items():
        after = Dataset.open(tmp_path / "back").read(split)
        np.testing.assert_array_equal(after.boxes_xywh, before.boxes_xywh)
        assert [after.class_names[label] for label in after.labels] == [before.class_names[label] for label in before.labels]
        assert [Path(name).name for name in after.file_names] == [Path(name).name for name in before.file_names]


@pytest.mark.usefixtures("_json_lines")
def test_its_errors_are_reported_as_those_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "train.jsonl").write_text('{\n{"file": "a.jpg"}\n[1]\n{"file": "a.jpg", "size_hw": [9, 9], "objects": [["cat"]]}\n')
    report = check(Dataset.open(tmp_path)).splits[0]
    assert [(problem.kind, problem.count) for problem in report.problems] == [("malformed_image", 4)]
    with pytest.raises(DataError, match=r"image entries without .*: 4"):
        Dataset.open(tmp_path).read("train")
