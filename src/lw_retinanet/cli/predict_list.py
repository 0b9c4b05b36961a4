"""``lw-retinanet predict`` on a list, and the merging of its parts."""

import re
from pathlib import Path
from typing import Any

import typer

from lw_retinanet.cli.console import print_json, say, with_bar
from lw_retinanet.errors import ConfigError, shown
from lw_retinanet.jobs.merge_bulk import BulkMerged, merge_bulk
from lw_retinanet.jobs.predict_bulk import BulkPredicted, BulkSettings, predict_bulk


def run(
    model: Path | None,
    manifest: str | None,
    merge: Path | None,
    *,
    out: Path,
    shard: str,
    processes: int,
    ray: str | None,
    coco: bool,
    of_images: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Merge, or predict on one shard; the exit code is 1 if images of it cannot be read.

    Args:
        of_images: Whether images or options were given that are for images only.
        options: Further settings of the prediction, and the other arguments as the command has them.
    """
    if of_images:
        raise ConfigError("--manifest and --merge take no images, --data, --tile or --every; leave them out")
    if merge:
        if model or manifest:
            raise ConfigError("--merge reads a folder only; leave out the model and --manifest")
        merged = merge_bulk(merge, coco=coco)
        files = f"{merged.file} and {merged.coco}" if merged.coco else f"{merged.file}"
        _say(merged, f"{merged.detections} objects in {merged.images} images", f"see {files}", as_json=as_json)
        return
    numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if not numbers:
        raise ConfigError(f"--shard {shown(shard)}: expected I/N with I from 0 to N - 1, such as 0/4")
    if model is None or not manifest or coco:
        raise ConfigError("name a model: predict MODEL --manifest LIST --out DIR; --coco goes with --merge")
    number, shards = map(int, numbers.groups())
    settings = BulkSettings(model=str(model), manifest=manifest, out=str(out), shard=number, shards=shards, **options)
    predicted = predict_bulk(settings, processes=processes, ray=ray, progress=with_bar)
    following = f"when all shards are done: lw-retinanet predict --merge {predicted.folder}"
    _say(predicted, f"{predicted.images} images of shard {number}/{shards}", following, as_json=as_json)
    if predicted.failed:
        raise typer.Exit(1)


def _say(done: BulkPredicted | BulkMerged, what: str, following: str, *, as_json: bool) -> None:
    if as_json:
        print_json(done.as_dict())
        return
    say(f"{what}{f', {done.failed} of which cannot be read (the column error says why)' if done.failed else ''}; {following}")
    unused = {"repeated": done.repeated, "empty": done.empty, "unreadable": done.unreadable}
    if total := sum(unused.values()):
        details = ", ".join(f"{number} {name}" for name, number in unused.items() if number)
        say(f"{total} rows of the list are not used ({details}); every image is predicted on once")
