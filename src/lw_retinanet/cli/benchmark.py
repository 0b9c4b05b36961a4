"""``lw-retinanet benchmark``."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lw_retinanet.backbones import BACKBONES_IN_WORDS

if TYPE_CHECKING:
    from lw_retinanet.benchmarking.run import BenchmarkSettings


def benchmark_command(
    models: list[str] = typer.Argument(
        None, help="Model files, run folders, exported files, or presets, whose weights are made up; with --peers alone: all presets."
    ),
    against: str | None = typer.Option(None, help="torchvision: its RetinaNet with the same weights, as shipped and at its best."),
    peers: bool = typer.Option(False, help="torchvision's Faster R-CNN, FCOS, SSD and SSDLite on the same pictures, too."),
    precision: str = typer.Option("fp32", help="Of PyTorch's networks: fp32, bf16 or all; exported files have their own."),
    size: int | None = typer.Option(None, help="Side that pictures are resized to [default: the models' own; presets 800]."),
    rounds: int = typer.Option(30, help="Rounds in which all take turns."),
    warm_up: int = typer.Option(5, help="Rounds before these, not counted."),
    batch_size: int = typer.Option(1, help="Pictures a call."),
    threads: int | None = typer.Option(None, help="Threads, pinned to as many CPUs [default: as many as torch takes]."),
    images: Path | None = typer.Option(None, help="Folder of pictures, at most 64 are used [default: some are made up]."),
    square: bool = typer.Option(False, "--square", help="Cut them to squares, so that inputs are SIZE x SIZE."),
    device: str = typer.Option("cpu", help="cpu, cuda or auto."),
    compile: bool = typer.Option(False, "--compile", help="Networks through torch.compile as well: minutes of compiling."),  # noqa: A002
    openvino: bool = typer.Option(False, "--openvino", help="PyTorch's networks in OpenVINO as well, also in int8."),
    classes: int = typer.Option(80, help="Classes of presets."),
    backbone: str = typer.Option("resnet50", help=f"Backbone of presets: {BACKBONES_IN_WORDS}."),
    out: Path | None = typer.Option(None, help="Folder for benchmark.json, benchmark.md and benchmark.png."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Time models side by side, pictures in files to boxes, after a look at whether those of the same weights answer alike."""
    from lw_retinanet.benchmarking.run import benchmark
    from lw_retinanet.benchmarking.tables import lines
    from lw_retinanet.cli.console import print_json, with_bar
    from lw_retinanet.files import output_folder

    settings = _settings(
        against=against,
        precision=precision,
        images=images,
        square=square,
        peers=peers,
        size=size,
        rounds=rounds,
        warm_up=warm_up,
        batch_size=batch_size,
        threads=threads,
        device=device,
        compiled=compile,
        openvino=openvino,
        num_classes=classes,
        backbone=backbone,
    )
    if out is not None:
        output_folder(out)
    report = benchmark(models or [], settings, progress=with_bar)
    result = report.as_dict()
    if out is not None:
        _write(out, result)
    if json:
        print_json(result)
    else:
        print("\n".join(lines(result)))


def _settings(*, against: str | None, precision: str, images: Path | None, **others: object) -> "BenchmarkSettings":
    from typing import Any

    from lw_retinanet.benchmarking.run import BenchmarkSettings
    from lw_retinanet.cli.console import one_of
    from lw_retinanet.files import existing

    if against is not None:
        one_of(("torchvision",), against, "against")
    if images is not None:
        existing(images, "folder of pictures")
    values: dict[str, Any] = dict(others)
    return BenchmarkSettings(
        against_torchvision=against is not None, precision=one_of(("fp32", "bf16", "all"), precision, "precision"), images=images, **values
    )


def _write(folder: Path, result: dict[str, object]) -> None:
    import json

    from lw_retinanet.benchmarking.chart import save_chart
    from lw_retinanet.benchmarking.tables import markdown, stage_rows
    from lw_retinanet.files import write_text

    tables = markdown(result)
    if stage_rows(result):
        tables += ["", *markdown(result, stages=True)]
    write_text(folder / "benchmark.md", "\n".join(tables) + "\n")
    save_chart(result, folder / "benchmark.png")
    write_text(folder / "benchmark.json", json.dumps(result, indent=1) + "\n")
