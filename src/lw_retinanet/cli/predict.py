"""``lw-retinanet predict``."""

from pathlib import Path
from typing import Any

import typer

from lw_retinanet.cli.console import checked_precision, checked_score, numbers
from lw_retinanet.detection.display_score import DISPLAY_SCORE
from lw_retinanet.detection.tiling import Tiling
from lw_retinanet.errors import ConfigError


def predict_command(
    model: Path | None = typer.Argument(None, help="Model file, run folder, exported file or torchvision:NAME."),
    sources: list[str] | None = typer.Argument(None, help="Images, folders, globs; or one video. With --data: its images."),
    data: Path | None = typer.Option(None, help="Data set whose ids of images and classes results.json has [default: file names]."),
    split: str | None = typer.Option(None, help="Split of that data set [default: val, if there are splits]."),
    out: Path | None = typer.Option(
        None,
        help="Folder for images with boxes, predictions.json and results.json (COCO) [default: predictions, without --json]; of a video "
        "the video with boxes (.webm, .mp4, .mkv, .avi, .mov), beside which goes a .jsonl with a line a frame.",
    ),
    score: Any = typer.Option(DISPLAY_SCORE, parser=checked_score, metavar="SCORE|best", help="Smallest score; best: by F1 on val."),
    head: str | None = typer.Option(
        None, help="Head of a lightened model: light, or full, the one it had before [default: light, or the one in an exported file]."
    ),
    precision: str = typer.Option("fp32", help="Of the network: fp32, bf16, fp16 (GPUs), or auto: fp32 or bf16, as measured."),
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    batch_size: int = typer.Option(1, min=1, max=1024, help="Images at a time, of equal size when resized; more than 1 helps a GPU."),
    max_pixels: int = typer.Option(64_000_000, min=1, help="Refuse images with more pixels; decoding one takes about 8 bytes a pixel."),
    every: int = typer.Option(1, min=1, help="Of a video: look at every so many frames; boxes stay until the next one."),
    nms: float | None = typer.Option(
        None, help="NMS removes boxes that overlap a better one by more than this IoU [default: the model's]."
    ),
    class_agnostic: bool = typer.Option(False, "--class-agnostic", help="NMS removes boxes of other classes, too."),
    max_detections: int | None = typer.Option(None, help="Most detections of an image [default: the model's]."),
    tile: int | None = typer.Option(None, help="Cut large images into tiles of so many pixels a side; GeoTIFFs are read tile by tile."),
    overlap: float = typer.Option(0.2, help="Share of a tile that the next one has, too; larger than the objects."),
    whole_image: bool = typer.Option(False, "--whole-image", help="Also look at the image as a whole, for objects larger than a tile."),
    bands: str | None = typer.Option(None, help="Bands of a raster that are red, green and blue, such as 3,2,1."),
    value_range: str | None = typer.Option(None, help="Values of a raster that are black and full brightness, such as 0,10000."),
    wgs84: bool = typer.Option(False, "--wgs84", help="GeoJSON in longitude and latitude instead of the raster's own coordinates."),
    manifest: str | None = typer.Option(None, help="A list of images: text, a path or URI a line; CSV or Parquet with a column file."),
    shard: str = typer.Option("0/1", help="Of a list: part I/N of it, I from 0; each machine takes another one, into one folder."),
    processes: int = typer.Option(1, min=1, max=1024, help="Of a list: processes of this machine that share the shard."),
    ray: str | None = typer.Option(None, help="Of a list: address of a Ray cluster that does the work: auto, ray://HOST:10001, or local."),
    chunk: int = typer.Option(1000, min=1, help="Of a list: images of one Parquet part, which a killed run does again at most."),
    merge: Path | None = typer.Option(None, help="Folder of predictions on a list: check that it is complete, write predictions.parquet."),
    coco: bool = typer.Option(False, "--coco", help="With --merge: also write results.json (COCO)."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Find objects in images; an image that cannot be read is named, the others go on, and the exit code is 1."""
    from lw_retinanet.cli import predict_list, predict_sources

    chosen, span = numbers(bands, int, "bands"), numbers(value_range, float, "value-range")
    tiling = Tiling.of(tile, overlap=overlap, whole_image=whole_image, bands=chosen, value_range=span, wgs84=wgs84)
    output = {"nms": nms, "class_agnostic": class_agnostic, "max_detections": max_detections}
    options: dict[str, Any] = {"score": score, "head": head, "precision": checked_precision(precision), "device": device}
    options |= {"max_pixels": max_pixels, "batch_size": batch_size, "output": output}
    if manifest or merge:
        options |= {"shard": shard, "processes": processes, "ray": ray, "chunk": chunk, "coco": coco}
        options["of_images"] = bool(sources or data or split or tiling or every != 1)
        predict_list.run(model, manifest, merge, out=out or Path("predictions"), as_json=json, **options)
    elif (shard, processes, ray, coco) != ("0/1", 1, None, False):
        raise ConfigError("--shard, --processes and --ray go with --manifest, and --coco with --merge; leave them out for images")
    elif model is None or not (sources or data):
        raise ConfigError("name a model and images: predict MODEL SOURCES..., or a list: predict MODEL --manifest LIST (see --help)")
    else:
        options |= {"of_data": {"data": data, "split": split}, "every": every, "tiling": tiling}
        predict_sources.run(model, sources or [], out=out, as_json=json, **options)
