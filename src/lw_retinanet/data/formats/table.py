"""The annotation formats. Each is imported when it is first needed, so that help texts can name them at no cost."""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from lw_retinanet.errors import DataError

if TYPE_CHECKING:
    from lw_retinanet.data.formats.annotation_format import AnnotationFormat

# Each is a module of this package that holds an `AnnotationFormat` of the same name as ``FORMAT``. Data sets are recognised in this order.
# CSV comes before YOLO, because any text is YAML, and parsing a large table as YAML is slow.
FORMATS: tuple[str, ...] = ("coco", "voc", "csv", "yolo")


def load_format(name: str) -> "AnnotationFormat":
    """The format of this name.

    Raises:
        DataError: if there is none.
    """
    if name not in FORMATS:
        raise DataError(f"unknown annotation format {name!r}; the formats are {', '.join(FORMATS)}")
    return _import_format(name)


@cache
def _import_format(name: str) -> "AnnotationFormat":
    found: AnnotationFormat = import_module(f"lw_retinanet.data.formats.{name}").FORMAT
    return found
