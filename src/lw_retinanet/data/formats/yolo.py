"""YOLO label files: centre, width and height of each box as fractions of the image."""

import os
import posixpath
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from lw_retinanet.data.formats.annotation_format import AnnotationFormat, Files, Part, Parts, Sign
from lw_retinanet.data.formats.target_files import (
    plain_objects,
    require_plain_class_names,
    target_names,
    with_unique_stems,
    without_details,
)
from lw_retinanet.data.formats.yolo_labels import boxes_of_lines, read_label_lines
from lw_retinanet.data.formats.yolo_lists import images_and_labels, read_yolo_file, unused_labels
from lw_retinanet.data.image_files import files_of, is_file, walk_files
from lw_retinanet.data.image_sizes import known_sizes, measure_sizes
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Category, Records, build_records
from lw_retinanet.errors import DataError


class Yolo(AnnotationFormat):
    """YOLO: one text file of labels an image, with the classes and splits in ``data.yaml`` or darknet's ``obj.data``.

    Lines are boxes (``class cx cy w h``, in fractions of the image), polygons or oriented boxes, of which the upright box is taken, or
    boxes with keypoints, a confidence or a track number, which are not read (`yolo_labels`). An empty or missing label file is an image
    without objects. Label Studio's ``classes.txt`` may stand for the data file. Category ids are YOLO's own class numbers, image ids 1..I
    in the order of the list or of the file names. What is written has no crowd regions and no boxes without an area.
    """

    name = "yolo"
    layouts = "a YOLO data.yaml or obj.data"
    takes_sizes_from_images = True

    def recognise_file(self, path: Path, head: str) -> Parts:
        """A YAML file with ``names``, or darknet's data file."""
        try:
            splits = read_yolo_file(path).splits
        except DataError:
            if path.suffix.lower() in (".yaml", ".yml", ".data"):
                raise
            return {}
        if not splits:
            raise DataError(f"{path}: names no images; add 'train' and 'val' with a folder or a list of images")
        return {split: Part(format=self, path=path, split=split) for split in splits}

    def recognise_folder(self, folder: Path, sign: Sign) -> Parts | Path:
        """The data file by its usual name, or the only one there is."""
        if sign is not Sign.STRUCTURE:
            return {}
        files = files_of(folder, ".yaml", ".yml", ".data")
        named = [path for name in ("data.yaml", "data.yml", "dataset.yaml", "obj.data") for path in files if path.name.lower() == name]
        if named or len(files) == 1:
            return (named or files)[0]
        classes = next((folder / name for name in ("classes.txt", "obj.names", "labels/classes.txt") if is_file(folder / name)), None)
        is_whole = (folder / "images").is_dir() and (folder / "labels").is_dir()
        if classes is None or not is_whole:
            if is_whole and next(walk_files(folder / "labels", (".txt",)), None) is not None:
                raise DataError(f"{folder}: YOLO labels without class names; write them into {folder / 'classes.txt'}, one a line")
            return {}
        splits = read_yolo_file(classes).splits
        return {split: Part(format=self, path=classes, split=split) for split in splits}

    def parse(self, path: Path, root: Path | None, split: str | None, problems: Problems) -> Records:
        """See `AnnotationFormat.read`; a split is a key of the data file, and the images lie where it says."""
        data = read_yolo_file(path)
        if split is None and len(data.splits) == 1:
            split = next(iter(data.splits))
        if split is None or split not in data.splits:
            raise DataError(f"{path}: the splits are {', '.join(data.splits) or 'missing'}, not {split!r}; name one of them")
        pairs = images_and_labels(data, split)
        images = [Path(os.path.abspath(pair.image)) for pair in pairs]  # noqa: PTH100 - resolve() would follow links out of the data set
        folder = Path(os.path.commonpath([image.parent for image in images])) if images else data.folder
        names = [image.relative_to(folder).as_posix() for image in images]
        sizes_hw = measure_sizes(folder, names, problems)

        label_of = {number: label for label, number in enumerate(data.names)}
        rows: list[int] = []
        labels: list[int] = []
        fractions: list[tuple[float, float, float, float]] = []
        lines = [(row, line) for row, pair in enumerate(pairs) if pair.label for line in read_label_lines(pair.label, problems)]
        for (row, line), box in zip(lines, boxes_of_lines([line for _, line in lines], data.num_extra, problems), strict=True):
            if box is None or not sizes_hw[row].all():
                continue
            if line.number not in label_of:
                problems.add("unknown_category", f"{line.where}: class {line.number}")
            else:
                rows.append(row)
                labels.append(label_of[line.number])
                fractions.append(box)
        without = [pair.image for pair in pairs if pair.label is None]
        if len(without) < len(pairs):  # a split of images alone has nothing to be said about one by one
            problems.add_many("image_without_label", len(without), map(str, without))
        lost = unused_labels(pairs)
        problems.add_many("label_without_image", len(lost), map(str, lost))
        centres_and_sides = np.array(fractions, dtype=np.float64).reshape(-1, 4)
        sizes_wh = sizes_hw[np.array(rows, dtype=np.int64)][:, ::-1].astype(np.float64)
        sides = centres_and_sides[:, 2:] * sizes_wh
        return build_records(
            root=folder,
            file_names=names,
            sizes_hw=sizes_hw,
            image_of_box=rows,
            boxes_xywh=np.hstack([centres_and_sides[:, :2] * sizes_wh - sides / 2, sides]),
            labels=labels,
            categories=[Category(id=number, name=name) for number, name in data.names.items()],
        )

    def holds(self, records: Records) -> NDArray[np.bool_]:
        """Objects with an area."""
        return plain_objects(records)

    def kept(self, splits: Mapping[str, Records]) -> dict[str, Records]:
        """Boxes and the names of all classes, which are the same in all splits."""
        return without_details(splits, self.holds, class_names=next(iter(splits.values())).class_names, first_id=0)

    def files(self, splits: Mapping[str, Records]) -> Files:
        """``data.yaml``, ``images/{split}/`` and ``labels/{split}/``."""
        require_plain_class_names(splits, "YOLO")
        first_split, first = next(iter(splits.items()))
        # Without `path`: Ultralytics would take "." as the working directory.
        content = {split: f"images/{split}" for split in splits} | {"names": dict(enumerate(first.class_names))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
        files: Files = {"data.yaml": partial(iter, [text])}
        for split, records in splits.items():
            if records.class_names != first.class_names:
                raise DataError(
                    f"the classes of {split!r} and {first_split!r} differ, and YOLO has one list for all; convert them separately"
                )
            names = with_unique_stems(target_names({split: records})[split], split)
            sizes_hw = known_sizes(records)
            if not sizes_hw.all():
                row = int(np.flatnonzero(~sizes_hw.all(axis=1))[0])
                raise DataError(
                    f"{records.path(row)}: the image size is neither annotated nor readable, and YOLO needs it; restore the image"
                )
            keep = self.holds(records)
            for row, name in enumerate(names):
                files[f"images/{split}/{name}"] = records.path(row)
                files[f"labels/{split}/{posixpath.splitext(name)[0]}.txt"] = partial(_label_text, records, row, keep, sizes_hw[row])
        return files


def _label_text(records: Records, row: int, keep: NDArray[np.bool_], size_hw: NDArray[np.int32]) -> Iterator[bytes]:
    rows = records.rows(row)
    boxes = records.boxes_xywh[rows]
    size_wh = size_hw[::-1].astype(np.float64)
    fractions = np.hstack([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]]) / np.tile(size_wh, 2)
    for label, values in zip(records.labels[rows][keep[rows]].tolist(), fractions[keep[rows]].tolist(), strict=True):
        # Ten digits: below a millionth of a pixel for any image.
        yield (f"{label} " + " ".join(f"{value:.10f}" for value in values) + "\n").encode()


FORMAT = Yolo()
