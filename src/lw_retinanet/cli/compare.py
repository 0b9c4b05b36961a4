"""``lw-retinanet compare``."""

from pathlib import Path

import typer


def compare_command(
    detections_a: Path = typer.Argument(..., help="COCO results file of the first detector."),
    detections_b: Path = typer.Argument(..., help="COCO results file of the second detector."),
    data: Path = typer.Option(..., help="Data set that both were run on."),
    split: str | None = typer.Option(None, help="Split of the data set [default: val, where there are splits]."),
    draws: int = typer.Option(1000, min=100, max=1_000_000, help="Times that the images are drawn."),
    seed: int = typer.Option(0, min=0, help="Of the draws."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say how much better B is than A: the difference of AP, with a 95 % interval from drawing the same images for both."""
    from lw_retinanet.cli.console import existing, print_json, with_bar
    from lw_retinanet.data.box_quality import require_boxes
    from lw_retinanet.data.dataset import Dataset
    from lw_retinanet.evaluation.detections import read_results
    from lw_retinanet.evaluation.paired import compare

    existing(detections_a, "detections file")
    existing(detections_b, "detections file")
    existing(data, "data set")
    dataset = Dataset.open(data)
    records = dataset.read(split or dataset.or_whole("val"))
    require_boxes(records, data)
    comparison = compare(
        records,
        read_results(detections_a, records),
        read_results(detections_b, records),
        draws=draws,
        seed=seed,
        progress=with_bar,
    )
    if json:
        print_json(comparison.as_dict())
    else:
        print("\n".join(comparison.lines()))
