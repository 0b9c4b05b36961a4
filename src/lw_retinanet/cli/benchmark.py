"""``lw-retinanet benchmark``."""

from pathlib import Path

import typer

from lw_retinanet.backbones import BACKBONES_IN_WORDS
from lw_retinanet.cli.console import one_of, print_json, say, with_bar
from lw_retinanet.errors import ConfigError
from lw_retinanet.files import existing, output_folder


def benchmark_command(
    models: list[str] = typer.Argument(
        None,
        help="Model files, run folders, exported files, torchvision:NAME, or presets (random weights); with --peers alone: all presets.",
    ),
    against: str | None = typer.Option(None, help="torchvision: its RetinaNet with the same weights, as shipped and at its best."),
    peers: bool = typer.Option(False, help="torchvision's Faster R-CNN, FCOS, SSD and SSDLite on the same images as well."),
    precision: str = typer.Option("fp32", help="Precision of PyTorch's networks: fp32, bf16 or all; exported files have their own."),
    size: int | None = typer.Option(None, help="Side that images are resized to [default: the models' own; presets 800]."),
    rounds: int = typer.Option(30, help="Rounds; in each, every model runs once."),
    warm_up: int = typer.Option(5, help="Rounds before these, which do not count."),
    batch_size: int = typer.Option(1, help="Images that go through a network at a time."),
    threads: int | None = typer.Option(None, help="Threads, pinned to as many CPUs [default: as many as torch takes]."),
    images: Path | None = typer.Option(None, help="Folder of images, at most 64 are used, 1,000 with --http [default: random images]."),
    square: bool = typer.Option(False, "--square", help="Cut the images to squares, so that inputs are SIZE x SIZE."),
    device: str = typer.Option("cpu", help="cpu, cuda or auto."),
    compile: bool = typer.Option(False, "--compile", help="Run networks through torch.compile as well; compiling takes minutes."),  # noqa: A002
    openvino: bool = typer.Option(False, "--openvino", help="Run PyTorch's networks in OpenVINO as well, also in int8."),
    classes: int = typer.Option(80, help="Number of classes of presets."),
    backbone: str = typer.Option("resnet50", help=f"Backbone of presets: {BACKBONES_IN_WORDS}."),
    http: str | None = typer.Option(None, metavar="URL", help="Load test of a service at this URL, with --images; no models are given."),
    clients: int = typer.Option(64, min=1, max=1000, help="With --http: clients that send at the same time."),
    seconds: float = typer.Option(60.0, min=0.1, help="With --http: length of the load test."),
    token: str | None = typer.Option(None, envvar="LW_RETINANET_TOKEN", help="With --http: the service's token."),
    out: Path | None = typer.Option(None, help="Folder for benchmark.json, benchmark.md and benchmark.png."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Time models side by side, from image files to boxes, after checking that models with the same weights give the same detections."""
    if http is not None:
        return _load_test(http, models, images, clients=clients, seconds=seconds, token=token, as_json=json)
    from lw_retinanet.benchmarking.report import write_report_files
    from lw_retinanet.benchmarking.run import benchmark
    from lw_retinanet.benchmarking.settings import BenchmarkSettings
    from lw_retinanet.benchmarking.tables import lines

    if against is not None:
        one_of(("torchvision",), against, "against")
    settings = BenchmarkSettings(
        against_torchvision=against is not None,
        precision=one_of(("fp32", "bf16", "all"), precision, "precision"),
        images=None if images is None else existing(images, "folder of images"),
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
    result = benchmark(models or [], settings, progress=with_bar)
    if out is not None:
        write_report_files(out, result)
    return print_json(result) if json else say("\n".join(lines(result)))


def _load_test(
    url: str, models: list[str] | None, images: Path | None, *, clients: int, seconds: float, token: str | None, as_json: bool
) -> None:
    """``--http``: a service under load."""
    from lw_retinanet.benchmarking.http_load import load_test

    if models or images is None:
        raise ConfigError("--http tests the service at a URL: give --images FOLDER and no model")
    result = load_test(url, existing(images, "folder of images"), clients=clients, seconds=seconds, token=token).as_dict()
    if as_json:
        print_json(result)
    else:
        shown = {name: value if value is None or isinstance(value, int) else round(value, 1) for name, value in result.items()}
        say("\n".join(f"{name:<12}{value}" for name, value in shown.items()))
    if result["wrong"] or result["lost"] or result["errors"]:
        raise typer.Exit(1)
