"""The folder of a bulk prediction: parts of Parquet, and a record for each shard that says what made them."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lw_retinanet.data.records import Category
from lw_retinanet.detection.table import PredictedRow, predictions_table
from lw_retinanet.errors import DataError, InputError, printable
from lw_retinanet.files import replacing, write_text
from lw_retinanet.locks import lock_file

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

KEY = "lw_retinanet"
MERGED = "predictions.parquet"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BulkFolder:
    """Paths, records and parts of one shard.

    Args:
        path: The folder, which all shards may share.
        shard, shards: The number of the shard, from 0, and of all shards.
        record: What made the parts: digests of the model and the list, settings. It is equal in all parts of a folder.
    """

    path: Path
    shard: int
    shards: int
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """``00000-of-00001``."""
        return f"{self.shard:05d}-of-{self.shards:05d}"

    @property
    def record_file(self) -> Path:
        """The record of the shard."""
        return self.path / f"shard-{self.name}.json"

    def part(self, chunk: int) -> Path:
        """The part of a chunk, counted from 0."""
        return self.path / f"part-{self.name}-{chunk:07d}.parquet"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other process works on the shard; what a killed one left half-written is removed.

        Raises:
            InUseError: If another process does.
            OutputError: If the folder cannot be written to.
            InputError: If parts of another model, list or settings are there.
        """
        for file in sorted(self.path.glob("shard-*.json")):
            self.require_same(read_record(file)["record"], file)
        with lock_file(self.path / f".shard-{self.name}.lock", where=f"shard {self.shard}/{self.shards} of {self.path}"):
            for leftover in self.path.glob(f".part-{self.name}-*.part.parquet"):
                leftover.unlink(missing_ok=True)
            self._check_parts()
            yield

    def _check_parts(self) -> None:
        for part in sorted(self.path.glob(f"part-{self.name}-*.parquet")):
            try:
                with opened_part(part) as content:
                    self.require_same(record_of(content), part)
            except DataError as error:
                log.warning("%s; its images are predicted on again", error)
                part.unlink(missing_ok=True)

    def require_same(self, other: Mapping[str, Any], where: Path) -> None:
        """Check that a record is the one of this run.

        Raises:
            InputError: If not; the message holds what differs.
        """
        names = [name for name in {**other, **self.record} if other.get(name) != self.record.get(name)]
        if names:
            different = ", ".join(f"{name} {_short(other.get(name))} there, {_short(self.record.get(name))} here" for name in names)
            raise InputError(f"{printable(where)} is of another prediction ({different}); choose another folder, or the same settings")

    def write_part(self, chunk: int, rows: Sequence[PredictedRow], categories: Sequence[Category]) -> None:
        """Write a part, completely or not at all.

        Raises:
            DiskFullError: If there is no room for it.
        """
        from pyarrow import parquet

        table = predictions_table(rows, categories, {KEY: json.dumps(dict(self.record))})
        with replacing(self.part(chunk)) as temporary:
            parquet.write_table(table, temporary, compression="zstd")

    def write_record(self, finished: Mapping[str, int] | None) -> None:
        """Write the record of the shard.

        Args:
            finished: Numbers of a shard that is done: ``chunks``, ``images``, ``failed`` and those of its rows that are not used. None
                while it is not.
        """
        content = {"record": dict(self.record), "shard": self.shard, "shards": self.shards, "finished": finished and dict(finished)}
        write_text(self.record_file, json.dumps(content, indent=1) + "\n")


def read_record(file: Path) -> dict[str, Any]:
    """The content of a shard's record.

    Raises:
        DataError: If it is damaged.
    """
    try:
        content = json.loads(file.read_bytes())
        if isinstance(content["record"], dict) and 0 <= content["shard"] < content["shards"] and "finished" in content:
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{printable(file)} is damaged; remove it and predict on its shard again, which keeps the parts")


@contextmanager
def opened_part(part: Path) -> "Iterator[ParquetFile]":
    """A part that can be read.

    Raises:
        DataError: If it is damaged or missing.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        content = ParquetFile(part)
    except (ArrowException, OSError):
        raise DataError(f"{printable(part)} is {'damaged' if part.exists() else 'missing'}") from None
    with content:
        yield content


def record_of(part: "ParquetFile") -> dict[str, Any]:
    """The record that a part carries; empty if it carries none."""
    with suppress(ValueError, TypeError):
        return dict(json.loads((part.schema_arrow.metadata or {}).get(KEY.encode(), b"{}")))
    return {}


def _short(value: object) -> str:
    text = printable(str(value))
    return text[:12] if len(text) == 64 else text[:60]  # of a digest the beginning says enough
