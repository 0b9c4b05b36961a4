"""Lists of images to predict on: text, CSV or Parquet, local or by URI, read as a stream."""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.images import decode
from lw_retinanet.errors import DataError, ImageError, InputError, MissingExtraError, first_line, printable, shown

COLUMN = "file"
_INSTALL = "install it with: pip install 'lw-retinanet[bulk]'"
_HEAD = 1 << 16
_BLOCK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """A list of image files, one a row: lines of text, or the column ``file`` of a CSV or Parquet file. The content says which it is.

    Args:
        where: Its path or URI.
        kind: ``text``, ``parquet``, or the separator of a CSV file.
        sha256: Digest of its content.
        num_rows: The number of rows; of a text or CSV file the number of lines.
    """

    where: str
    kind: str
    sha256: str
    num_rows: int

    @classmethod
    def open(cls, where: str) -> "ImageList":
        """Recognise a list, and read it once for its digest.

        Raises:
            DataError: If it cannot be read, or is no such list.
            MissingExtraError: If it needs a package that is not installed.
        """
        digest, lines = hashlib.sha256(), 0
        with open_binary(where) as stream:
            kind = _kind(stream.read(_HEAD), where)
            stream.seek(0)
            while block := stream.read(_BLOCK):
                digest.update(block)
                lines += block.count(b"\n")
            if kind == "parquet":
                lines = _parquet(stream, where).metadata.num_rows
        return cls(where=where, kind=kind, sha256=digest.hexdigest(), num_rows=max(1, lines - (kind not in ("text", "parquet"))))

    def rows(self) -> Iterator[str | None]:
        """What each row holds: a path or URI, nothing ("") or something that is not readable (None)."""
        with open_binary(self.where) as stream:
            if self.kind == "parquet":
                yield from _parquet_column(stream, self.where)
                return
            # Bytes that are not UTF-8 become surrogates, which no text has.
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="" if self.kind != "text" else "\n")
            rows = (line.rstrip("\r\n") for line in text) if self.kind == "text" else _csv_column(text, self.kind)
            for row in rows:
                yield row if row is None or row.isprintable() or not any("\udc80" <= mark <= "\udcff" for mark in row) else None


@dataclass
class ShardRows:
    """The images of one shard, each once, in the order of the list. To which shard an image belongs follows from its name.

    Args:
        images: The list.
        shard, shards: The number of the shard, from 0, and of all shards.

    Attributes:
        counts: The number of rows that are ``repeated`` (of this shard), ``empty`` and ``unreadable`` (of the whole list).
    """

    images: ImageList
    shard: int
    shards: int
    counts: dict[str, int] = field(default_factory=lambda: {"repeated": 0, "empty": 0, "unreadable": 0})

    def __iter__(self) -> Iterator[str]:
        """Read the list from its beginning."""
        self.counts.update(repeated=0, empty=0, unreadable=0)
        seen: set[bytes] = set()  # 16 bytes an image instead of its name
        for row in self.images.rows():
            if not row or not row.strip():
                self.counts["unreadable" if row is None else "empty"] += 1
                continue
            digest = hashlib.blake2b(row.encode(), digest_size=16).digest()
            if int.from_bytes(digest[:8], "little") % self.shards != self.shard:
                continue
            if digest in seen:
                self.counts["repeated"] += 1
                continue
            seen.add(digest)
            yield row


def is_uri(where: str) -> bool:
    """Whether this is a URI rather than a path."""
    return "://" in where


def open_binary(where: str) -> IO[bytes]:
    """Open a local file, or through fsspec what a URI names.

    Raises:
        DataError: If it cannot be opened.
        MissingExtraError: If fsspec, or the package that it needs for this kind of URI, is not installed.
    """
    try:
        if not is_uri(where):
            if not Path(where).is_file():
                raise DataError(f"{shown(where, most=300)} {'is no file' if Path(where).exists() else 'does not exist'}; check the path")
            return Path(where).open("rb")
        return _open_uri(where)
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(where, most=300)} cannot be read ({printable(first_line(error))}); check the path") from None


def _open_uri(where: str) -> IO[bytes]:
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError(f"{shown(where, most=300)} needs fsspec; {_INSTALL}") from None
    try:
        stream: IO[bytes] = fsspec.open(where, "rb").open()
    except ImportError as error:
        raise MissingExtraError(
            f"{shown(where, most=300)}: {printable(first_line(error))}; pip install the package that it names"
        ) from None
    return stream


def read_listed(file: str, *, folders: Sequence[Path], max_pixels: int) -> NDArray[np.uint8]:
    """The image that a row names, as :func:`~lw_retinanet.data.images.decode` gives it.

    Args:
        file: A path or a URI.
        folders: Where a relative path is looked for, in this order.
        max_pixels: As for ``decode``.

    Raises:
        ImageError: If it cannot be read.
        MissingExtraError: If this kind of URI needs a package that is not installed.
    """
    if not is_uri(file):
        path = Path(file)
        try:
            place = next((folder / path for folder in folders if (folder / path).exists()), path)
        except (OSError, ValueError):  # a name that no file can have: the decoder says so
            place = path
        return decode(place, max_pixels=max_pixels, name=file)
    try:
        with _open_uri(file) as stream:
            content = stream.read()
    except InputError:
        raise
    except Exception as error:  # each file system of fsspec has exceptions of its own
        raise ImageError(f"{shown(file, most=300)}: cannot be read ({printable(first_line(error))}); check the address") from None
    return decode(content, max_pixels=max_pixels, name=file)


def image_folders(where: str) -> list[Path]:
    """Where relative paths of a list are looked for: the current folder, then the folder of the list."""
    return [Path()] if is_uri(where) else [Path(), Path(where).parent]


def need_pyarrow(why: str) -> None:
    """Check that pyarrow is installed.

    Raises:
        MissingExtraError: If it is not.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise MissingExtraError(f"{why} needs pyarrow; {_INSTALL}") from None


def _kind(head: bytes, where: str) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    name = shown(where, most=300)
    text = head.decode("utf-8-sig", errors="replace")
    if "\0" in text or not text.strip():
        what = "is empty" if not text.strip() else "is no list of images"
        raise DataError(f"{name} {what}; give text with a path a line, or CSV or Parquet with a column {COLUMN}")
    first = text.splitlines()[0]
    for separator in (",", ";", "\t"):
        if COLUMN in (columns := next(csv.reader([first], delimiter=separator), [])):
            return separator
        if where.lower().endswith(".csv") and separator == ",":
            raise DataError(f"{name} has no column {COLUMN} (its first line: {shown(', '.join(columns))}); name the column {COLUMN}")
    return "text"


def _csv_column(text: io.TextIOWrapper, separator: str) -> Iterator[str | None]:
    reader = csv.reader(text, delimiter=separator)
    place = next(reader).index(COLUMN)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None
            continue
        yield row[place] if len(row) > place else None if any(row) else ""


def _parquet_column(stream: IO[bytes], where: str) -> Iterator[str]:
    from pyarrow import ArrowException

    try:
        for batch in _parquet(stream, where).iter_batches(columns=[COLUMN]):
            yield from (value or "" for value in batch.column(0).to_pylist())
    except (ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise _damaged(where, error) from None


def _damaged(where: str, error: Exception) -> DataError:
    return DataError(f"{shown(where, most=300)}: damaged Parquet file ({printable(first_line(error))}); write it again")


def _parquet(stream: IO[bytes], where: str) -> Any:
    need_pyarrow("a Parquet list")
    from pyarrow import ArrowException, types
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(stream)
    except (ArrowException, OSError) as error:
        raise _damaged(where, error) from None
    columns = file.schema_arrow.names
    if COLUMN not in columns:
        raise DataError(f"{shown(where, most=300)} has no column {COLUMN} (it has {shown(', '.join(columns))}); name the column {COLUMN}")
    kind = file.schema_arrow.field(COLUMN).type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)):
        raise DataError(f"{shown(where, most=300)}: the column {COLUMN} holds {kind}; write it as text")
    return file
