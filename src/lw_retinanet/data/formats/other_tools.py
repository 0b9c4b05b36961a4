"""Files of annotation tools that are not read: named by what they are, with the export to choose instead."""

import re
from collections.abc import Mapping
from pathlib import Path

from lw_retinanet.errors import DataError

_HEAD = 65536
_CHOOSE = "export as COCO, YOLO or Pascal VOC instead"
# By what stands in the first characters of a JSON file.
_JSON: Mapping[str, tuple[str, str]] = {
    "labelme's JSON, a file an image": (
        r'"shapes"\s*:',
        "turn it into COCO or VOC by labelme2coco.py or labelme2voc.py of labelme's examples/instance_segmentation",
    ),
    "a project of VIA (VGG Image Annotator)": (
        r'"_via_|"region_attributes"|"shape_attributes"',
        "choose Annotation, Export Annotations (COCO format)",
    ),
    "CreateML's JSON": (r'"coordinates"\s*:\s*\{', _CHOOSE),
    "Label Studio's own JSON": (
        r'"(annotations|completions|predictions)"\s*:\s*\[\s*\{.*"result"\s*:|"from_name"\s*:|"rectanglelabels"',
        _CHOOSE,
    ),
    "Supervisely's JSON": (r'"classTitle"\s*:', _CHOOSE),
    "BDD100K's JSON": (r'"box2d"\s*:', "turn it into COCO by bdd100k.label.to_coco"),
    "Datumaro's JSON": (r'"dm_format_version"|"categories"\s*:\s*\{', "export it as COCO: datum convert -f coco"),
    "Darwin's JSON (V7)": (r'"bounding_box"\s*:\s*\{|"slots"\s*:', _CHOOSE),
    "FiftyOne's own JSON": (r'"labels"\s*:\s*\{.*"bounding_box"\s*:', "export as fiftyone.types.COCODetectionDataset"),
    "a manifest of SageMaker Ground Truth": (r'"source-ref"\s*:', "turn it into COCO"),
    "Labelbox's JSON": (r'"data_row"\s*:|"Labeled Data"\s*:', "turn it into COCO by labelbox's converter"),
    "GeoJSON": (r'"FeatureCollection"', "turn it into pixel boxes of the images, in COCO or CSV"),
}
_ARCHIVES: Mapping[bytes, str] = {
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
}


def read_head(path: Path) -> str:
    """The start of a text file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD).decode("utf-8-sig", errors="replace") if path.is_file() else ""
    except (OSError, ValueError):
        return ""


def refuse_other_json(path: Path, head: str) -> None:
    """Refuse the JSON of another tool.

    Raises:
        DataError: with the tool and the export to choose.
    """
    is_coco = re.search(r'"(images|categories)"\s*:\s*\[', head) is not None
    for name, (pattern, remedy) in _JSON.items():
        if not is_coco and re.search(pattern, head, re.DOTALL):
            raise DataError(f"{path}: {name}, which is not read; {remedy}")


def refuse_archive(path: Path, head: bytes) -> None:
    """Refuse a packed data set.

    Raises:
        DataError: asking to unpack it.
    """
    found = next((name for start, name in _ARCHIVES.items() if head.startswith(start)), None)
    if head[257:262] == b"ustar":
        found = "a tar archive"
    if found:
        raise DataError(f"{path}: {found}; unpack it and pass the folder")
