"""Check that a bulk prediction is complete, and write its parts into one file."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lw_retinanet.data.image_list import need_pyarrow
from lw_retinanet.detection.table import predictions_schema
from lw_retinanet.errors import DataError, InputError, printable
from lw_retinanet.files import replacing
from lw_retinanet.jobs.bulk_folder import MERGED, BulkFolder, opened_part, read_record, record_of

_MOST_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class BulkMerged:
    """What all shards hold.

    Args:
        file: The Parquet file with all rows.
        coco: The COCO results, if they were asked for.
        images: The number of images.
        failed: How many of them cannot be read.
        detections: The number of detections.
        repeated, empty, unreadable: Rows of the list that are not used.
    """

    file: Path
    coco: Path | None
    images: int
    failed: int
    detections: int
    repeated: int
    empty: int
    unreadable: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "file": str(self.file), "coco": self.coco and str(self.coco)}


def merge_bulk(path: Path, *, coco: bool = False) -> BulkMerged:
    """Write ``predictions.parquet``, a row an image, in the order of the shards and, within one, of the list.

    Args:
        path: The folder of the parts.
        coco: Also write ``results.json``, COCO results with file names as image ids.

    Raises:
        InputError: If a shard is missing or not finished, or parts of different predictions are there.
        MissingExtraError: If pyarrow is not installed.
        DiskFullError: If the disk is full.
    """
    need_pyarrow("merging")
    from pyarrow import parquet

    shards = _finished_shards(path)
    file, results = path / MERGED, path / "results.json" if coco else None
    detections = 0
    with ExitStack() as stack:
        temporary = stack.enter_context(replacing(file))
        stream = stack.enter_context(stack.enter_context(replacing(results)).open("w", encoding="utf-8")) if results else None
        writer = stack.enter_context(parquet.ParquetWriter(temporary, predictions_schema(), compression="zstd"))
        separator = "["
        for table in _tables(shards):
            writer.write_table(table)
            detections += len(table.column("detections").combine_chunks().flatten())
            separator = _write_coco(table, stream, separator) if stream else separator
        if stream:
            stream.write(f"{separator if separator == '[' else ''}]\n")
    finished = [numbers for _, numbers in shards]
    sums = {name: sum(numbers[name] for numbers in finished) for name in ("images", "failed", "repeated")}
    of_list = {name: max(numbers[name] for numbers in finished) for name in ("empty", "unreadable")}  # every shard reads the whole list
    return BulkMerged(file=file, coco=results, detections=detections, **sums, **of_list)


def _finished_shards(path: Path) -> list[tuple[BulkFolder, dict[str, int]]]:
    """All shards with their numbers, in order."""
    records = [(file, read_record(file)) for file in sorted(path.glob("shard-*.json"))]
    if not records:
        raise InputError(f"{printable(path)} holds no predictions on a list; predict with a manifest into it first")
    shards = records[0][1]["shards"]
    made = BulkFolder(path=path, shard=0, shards=shards, record=records[0][1]["record"])
    for file, content in records:
        made.require_same(content["record"], file)
    finished = {content["shard"]: content["finished"] for _, content in records if content["finished"]}
    missing = [f"{number}/{shards}" for number in range(shards) if number not in finished]
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise InputError(
            f"{printable(path)}: {len(missing)} of {shards} shards are missing or not finished: {', '.join(missing[:_MOST_NAMED])}{more}; "
            "predict on them, then merge again"
        )
    return [(BulkFolder(path=path, shard=number, shards=shards, record=made.record), finished[number]) for number in range(shards)]


def _tables(shards: list[tuple[BulkFolder, dict[str, int]]]) -> Iterator[Any]:
    """The tables of all parts, each of which is checked."""
    for folder, numbers in shards:
        images = 0
        for chunk in range(numbers["chunks"]):
            try:
                with opened_part(folder.part(chunk)) as part:
                    folder.require_same(record_of(part), folder.part(chunk))
                    table = part.read().replace_schema_metadata(None)
            except DataError as error:
                raise DataError(f"{error}; predict on shard {folder.shard}/{folder.shards} again, which makes it") from None
            images += len(table)
            yield table
        if images != numbers["images"]:
            raise DataError(
                f"{printable(folder.path)}: the parts of shard {folder.shard}/{folder.shards} hold {images} images instead of "
                f"{numbers['images']}; predict on it again in an empty folder"
            )


def _write_coco(table: Any, stream: IO[str], separator: str) -> str:
    """Write the detections of a table; returns what goes before the next one."""
    for row in table.select(["file", "detections"]).to_pylist():
        for found in row["detections"]:
            x1, y1, x2, y2 = found["box"]
            entry = {"image_id": row["file"], "category_id": found["category_id"], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            stream.write(separator + json.dumps({**entry, "score": found["score"]}))
            separator = ",\n"
    return separator
