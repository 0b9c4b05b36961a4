"""``lw-retinanet predict`` on images and on a video."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from lw_retinanet.cli.console import print_json, say, say_error, with_bar
from lw_retinanet.data.video_names import is_video
from lw_retinanet.detection.tiling import Tiling
from lw_retinanet.errors import ConfigError
from lw_retinanet.jobs.predict import run_prediction
from lw_retinanet.jobs.predict_video import run_video_prediction


def run(
    model: Path,
    sources: list[str],
    *,
    out: Path | None,
    as_json: bool,
    every: int,
    of_data: Mapping[str, Any],
    **options: Any,
) -> None:
    """Predict on images or a video; the exit code is 1 if images cannot be read.

    Args:
        of_data: ``data`` and ``split``; this and the other arguments are those of the command.
    """
    if any(map(is_video, [*sources, out or ""])):
        if any(of_data.values()):
            raise ConfigError("--data and --split are for images; leave them out for a video")
        _run_video(model, sources, out=out, as_json=as_json, every=every, **options)
        return
    if every != 1:
        raise ConfigError("--every is for a video; leave it out for images")
    folder = out or (None if as_json else Path("predictions"))
    say_each: Any = {"on_error": lambda error: say_error(str(error)), "progress": with_bar}
    predicted = run_prediction(model, sources, out=folder, **say_each, **of_data, **options)
    if as_json:
        print_json(predicted.as_dict())
    else:
        say(f"{predicted.num_detections} objects in {len(predicted.images)} images; see {predicted.folder}")
    if predicted.errors:
        raise typer.Exit(1)


def _run_video(
    model: Path, sources: list[str], *, out: Path | None, as_json: bool, batch_size: int, tiling: Tiling | None, **options: Any
) -> None:
    if tiling:
        raise ConfigError("--tile is for images; leave it out for a video")
    out = out or (None if as_json else Path("predictions"))
    options["batch_size"] = batch_size if batch_size > 1 else None
    if len(sources) > 1:
        raise ConfigError(f"{len(sources)} sources: a video is predicted on alone; name one video, or images only")
    if out is not None and not is_video(out) and (out.is_dir() or not out.suffix):
        out = out / f"{Path(sources[0]).stem}.webm"
    predicted = run_video_prediction(model, sources[0], out=out, keep=as_json, progress=with_bar, **options)
    if as_json:
        print_json(predicted.as_dict())
        return
    of_frames = f"{predicted.num_looked_at} of {predicted.num_frames} frames, {predicted.per_second:.1f} frames a second"
    say(f"{predicted.num_detections} objects in {of_frames}; see {predicted.video} and {predicted.lines}")
