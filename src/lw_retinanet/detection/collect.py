"""Results of many pictures: drawn files, one JSON file, one COCO results file."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lw_retinanet.detection.result import Result
from lw_retinanet.errors import InputError
from lw_retinanet.files import write_text


class Collection:
    """Gathers results picture by picture.

    Args:
        folder: for drawn pictures and files; None keeps the plain values only.
        sources: pictures that will be read; none of them may be one that this collection could write.

    Raises:
        InputError: if one of ``sources`` lies in ``folder``.
    """

    def __init__(self, folder: Path | None, sources: Sequence[Path] = ()) -> None:
        if folder:
            inside = next((source for source in sources if source.resolve().parent == folder.resolve()), None)
            if inside:
                raise InputError(f"{inside} lies in the folder {folder} that results go to and could be overwritten; choose another --out")
        self.folder = folder
        self._images: list[dict[str, Any]] = []
        self._coco: list[dict[str, Any]] = []
        self._names: set[str] = set()

    def add(self, result: Result) -> None:
        """Take one result in, and draw it into the folder."""
        self._images.append(result.to_dict())
        self._coco += result.to_coco(result.file or str(len(self._images) - 1))
        if self.folder:
            result.save(self.folder / self._free_name(Path(result.file or "picture").stem))

    def as_dict(self) -> dict[str, Any]:
        """``{"images": [...]}`` as ``predict --json`` prints it."""
        return {"images": self._images}

    def write(self) -> None:
        """``predictions.json`` (as :meth:`as_dict`) and ``results.json`` (COCO results, file names as image ids)."""
        if self.folder:
            write_text(self.folder / "predictions.json", json.dumps(self.as_dict(), indent=1) + "\n")
            write_text(self.folder / "results.json", json.dumps(self._coco) + "\n")

    def _free_name(self, stem: str) -> str:
        """A name that no earlier picture of this collection has: folders may hold the same names."""
        clean = re.sub(r"[^\w.-]+", "_", stem)[:100] or "picture"
        name, number = clean, 2
        while name.casefold() in self._names:  # some file systems do not tell A.jpg from a.jpg
            name, number = f"{clean}-{number}", number + 1
        self._names.add(name.casefold())
        return f"{name}.jpg"
