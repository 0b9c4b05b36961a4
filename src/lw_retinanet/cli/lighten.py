"""``lw-retinanet lighten``."""

from pathlib import Path

import typer

from lw_retinanet.cli.console import print_json, say, with_bar
from lw_retinanet.heads import presets_in_words


def lighten_command(
    model: Path = typer.Argument(help="Trained model file, run folder or torchvision:NAME (convert other foreign weights first)."),
    to: str = typer.Option("", help=f"Preset: {presets_in_words()} [default: lw-narrow, without --budget]."),
    budget: float | None = typer.Option(None, min=0.0, help="GMACs to stay within at the model's size; without --to the plan is found."),
    data: Path | None = typer.Option(
        None, help="Calibration images: a folder, or a data set, whose val split then gives the AP. Their labels are not read."
    ),
    out: Path = typer.Option(..., help="New model file (.safetensors); the report goes beside it, into NAME-report/."),
    images: int = typer.Option(512, min=1, help="Number of calibration images; from more, that many are drawn at random."),
    fit_steps: int = typer.Option(1500, min=0, help="Steps of the fit; 0 stops after the closed form."),
    rate: float = typer.Option(3e-5, min=1e-7, max=1.0, help="Learning rate of the fit."),
    keep_pyramid: bool = typer.Option(False, help="Leave the convolution that makes P3 (and P4) as it is, although only D3 (D4) reads it."),
    latency: bool = typer.Option(True, help="Measure milliseconds of the full and the light head."),
    seed: int = typer.Option(0, min=0, help="Seed for the choice of images and cells and for the order of the fit."),
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Make a trained detector cheaper: the head on its finest level gets new towers, fitted to the old ones; all other weights stay."""
    from lw_retinanet.jobs.lighten import lighten_file

    run = lighten_file(
        model,
        out,
        to=to or None,
        budget=budget,
        data=data,
        images=images,
        fit_steps=fit_steps,
        rate=rate,
        keep_pyramid=keep_pyramid,
        latency=latency,
        seed=seed,
        device=device,
        progress=with_bar,
    )
    if json:
        print_json(run.report.as_dict())
        return
    say("\n".join(run.report.lines()))
    if data is None:
        say("Filled from the old weights alone, which costs much AP; with --data IMAGES the new towers are fitted, without labels.")
    say(f"model: {out} (both heads: predict --head full|light); report: {run.report_folder / 'report.html'}")
