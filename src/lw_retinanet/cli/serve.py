"""``lw-retinanet serve``."""

import signal
from pathlib import Path

import typer

from lw_retinanet.cli.console import checked_precision


def serve_command(
    model: str = typer.Argument(help="Model file, run folder, exported file or torchvision:NAME."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; 0.0.0.0 lets other machines in."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    token: str | None = typer.Option(None, envvar="LW_RETINANET_TOKEN", help="Requests need the header Authorization: Bearer TOKEN."),
    score: float = typer.Option(0.3, min=0.0, max=0.999, help="Smallest score, where a request does not say."),
    head: str | None = typer.Option(None, help="Head of a lightened model that answers by default: light or full."),
    precision: str = typer.Option("fp32", help="Of the network: fp32, bf16, fp16 (GPUs), or auto: fp32 or bf16, as measured at the start."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    max_batch: int = typer.Option(8, min=1, max=256, help="Images that go through the network together at most."),
    batch_wait: float = typer.Option(0.0, min=0.0, max=1000.0, help="Milliseconds that a batch waits for more images."),
    queue: int = typer.Option(128, min=1, max=100_000, help="Requests that may wait; beyond, they get 503 at once."),
    deadline: float = typer.Option(30.0, min=0.1, max=3600.0, help="Seconds from the last byte of a request to its answer."),
    max_mib: float = typer.Option(32.0, min=0.001, max=4096.0, help="Largest request in MiB; beyond, 413."),
    max_pixels: int = typer.Option(64_000_000, min=1, help="Largest image; beyond, 413."),
    receive: float = typer.Option(30.0, min=0.1, max=3600.0, help="Seconds in which a request has to arrive."),
    drain: float = typer.Option(25.0, min=0.1, max=3600.0, help="Seconds for accepted requests after SIGTERM."),
) -> None:
    """Detect over HTTP: POST /detect, and a page to try it at the address that is shown. SIGTERM answers what was accepted, then ends."""
    from lw_retinanet.exporting.load import open_detector
    from lw_retinanet.serving.server import serve
    from lw_retinanet.serving.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        token=token or None,  # type: ignore[arg-type]
        score=score,
        max_batch=max_batch,
        batch_wait_ms=batch_wait,
        queue=queue,
        deadline_s=deadline,
        max_bytes=round(max_mib * 2**20),
        max_pixels=max_pixels,
        receive_s=receive,
        drain_s=drain,
    )
    chosen = checked_precision(precision)
    ended_by = serve(lambda: open_detector(Path(model), head=head, precision=chosen, device=device), settings)
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt
