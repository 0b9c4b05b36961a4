"""The summary of an experiment: its finished runs become the rows of the table."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lw_retinanet.counting.latency import measure_latency
from lw_retinanet.errors import InputError
from lw_retinanet.evaluation.paired import Drawn, drawn_scores
from lw_retinanet.files import write_text
from lw_retinanet.tradeoff.experiment import Cell
from lw_retinanet.tradeoff.report import Facts
from lw_retinanet.tradeoff.row_cost import RowCost, counted_size
from lw_retinanet.tradeoff.rows import ExperimentRow, Latency, Role, joined
from lw_retinanet.tradeoff.runner import Runner, SeedRun, made_with, read_json
from lw_retinanet.tradeoff.verdict import Initialisation, Pair, against_line

LATENCY_FILE = "latency.json"
LATENCY_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The results of all finished runs.

    Args:
        rows: Rows of the table, in the order of the experiment.
        initialisation: Heads that were trained from two initialisations.
        pairs: Pairs that the experiment asks for, if both rows have finished runs.
    """

    rows: Sequence[ExperimentRow]
    initialisation: Sequence[Initialisation]
    pairs: Sequence[Pair]


def summarise(runner: Runner, *, command: Callable[[str], str]) -> Summary:
    """Make a row of each cell of which at least one run is finished.

    Args:
        runner: Runner of the experiment.
        command: Gives the command that repeats a row, from the name of the row.

    Raises:
        InputError: if no run is finished, or there are too few validation images for an interval.
    """
    experiment = runner.experiment
    finished = {
        cell: runs
        for cell in experiment.cells()
        if (runs := [run for seed in experiment.seeds if runner.result(run := SeedRun(cell=cell, seed=seed)) is not None])
    }
    if not finished:
        raise InputError(f"{runner.out} holds no finished run yet; run the experiment first")
    drawn = {
        cell: drawn_scores(runner.held_out, [runner.detections(run) for run in runs], draws=experiment.draws)
        for cell, runs in finished.items()
    }
    costs = {cell: runner.cost(runs[0]) for cell, runs in finished.items()}
    scaling = [(costs[cell].macs, drawn[cell]) for cell in finished if cell.line == experiment.lines[0].name]
    latency = _known_latency(runner)
    baseline = drawn.get(experiment.baseline)
    rows = [
        _row(runner, cell, finished[cell], drawn[cell], costs[cell], scaling=scaling, baseline=baseline, latency=latency, command=command)
        for cell in finished
    ]
    by_name = {cell.name: scores for cell, scores in drawn.items()}
    pairs = [
        Pair(name_a=a, name_b=b, interval=by_name[b].against(by_name[a])["AP"])
        for a, b in experiment.pairs
        if a in by_name and b in by_name
    ]
    return Summary(rows=rows, initialisation=_initialisation(drawn), pairs=pairs)


def _initialisation(drawn: Mapping[Cell, Drawn]) -> list[Initialisation]:
    """Compare each light head that was trained with the paper's initialisation and with fan-in, preferably in its light layers alone."""
    found = []
    for cell, with_paper in drawn.items():
        if cell.variant.init != "paper" or not cell.is_light:
            continue
        for init in ("fan_in_light", None, "fan_in"):
            other = replace(cell, variant=cell.variant.model_copy(update={"init": init}))
            match = next((drawn[known] for known in drawn if replace(known, line=cell.line) == other), None)
            if match:
                found.append(Initialisation(preset=cell.variant.preset, interval=match.against(with_paper)["AP"]))
                break
    return found


def _role(runner: Runner, cell: Cell) -> Role:
    if cell.line == runner.experiment.lines[0].name:
        return "baseline" if cell == runner.experiment.baseline else "scaling"
    return "light" if cell.is_light and cell.variant.init is None else "other"


def _row(
    runner: Runner,
    cell: Cell,
    runs: Sequence[SeedRun],
    drawn: Drawn,
    cost: RowCost,
    *,
    scaling: Sequence[tuple[int, Drawn]],
    baseline: Drawn | None,
    latency: dict[str, dict[str, float]],
    command: Callable[[str], str],
) -> ExperimentRow:
    results = [runner.result(run) or {} for run in runs]
    times = latency.get(cell.name)
    return ExperimentRow(
        line=cell.line,
        role=_role(runner, cell),
        regime=cell.regime,
        variant=cell.variant.label + (f", {cell.regime}" if runner.experiment.is_mixed else ""),
        preset=cell.variant.preset,
        scale=cell.scale,
        size_hw=cost.size_hw,
        macs=cost.macs,
        params=cost.params,
        blocks=cost.blocks,
        latency_ms=Latency(times["median"], times["p10"], times["p90"]) if times else None,
        seeds=tuple(run.seed for run in runs),
        aps=tuple(float(result["AP"]) for result in results),
        metrics=drawn.estimates(),
        against_baseline=None if baseline is None or cell == runner.experiment.baseline else drawn.against(baseline)["AP"],
        against_scaling=against_line(drawn, cost.macs, scaling) if _role(runner, cell) == "light" else None,
        seconds=sum(float(result["seconds"]) for result in results) / len(results),
        command=command(cell.name),
        made_with=joined(result["made_with"] for result in results),
    )


def measure_rows(runner: Runner, cells: Sequence[Cell]) -> None:
    """Measure the latency of rows side by side, and write it into the folder of the experiment."""
    models = {cell.name: runner.model(cell) for cell in cells}
    sizes = {name: counted_size(model, runner.held_out) for name, model in models.items()}
    # Rows that differ only in their training have the same network, which is measured once.
    first: dict[tuple[Any, ...], str] = {}
    same = {cell.name: first.setdefault((cell.variant.preset, cell.variant.anchors, cell.scale), cell.name) for cell in cells}
    wanted = sorted(set(same.values()))
    times = measure_latency(
        {name: models[name] for name in wanted},
        size_hw={name: sizes[name] for name in wanted},
        device=runner.device,
        rounds=LATENCY_ROUNDS,
    )
    precision = "bf16" if all("bf16" in entry for entry in times.values()) else "fp32"
    content = {
        "precision": precision,
        "made_with": made_with(),
        "rows": {name: times[representative][precision] for name, representative in same.items()},
    }
    write_text(runner.out / LATENCY_FILE, json.dumps(content, indent=1) + "\n")


def has_latency(runner: Runner, cells: Sequence[Cell]) -> bool:
    """Whether the latency of all these rows has been measured."""
    return set(_known_latency(runner)) >= {cell.name for cell in cells}


def _known_latency(runner: Runner) -> dict[str, dict[str, float]]:
    measured = read_json(runner.out / LATENCY_FILE)
    return measured["rows"] if measured else {}


def facts(runner: Runner) -> Facts:
    """What the numbers of all rows depend on."""
    experiment = runner.experiment
    config = experiment.config(experiment.baseline, experiment.seeds[0])
    made, train = made_with(), config.train
    length = f"{train.steps} steps" if train.steps else f"{train.epochs} epochs"
    more = {
        "Training images": runner.records.summary(),
        "Training": f"{length} of {train.batch_size} images, {train.optimiser}, peak rate {train.rate:g}, {train.schedule} schedule",
        "Seeds": ", ".join(map(str, experiment.seeds)),
        "Arithmetic": "multiply-accumulates of convolutions for one image of the commonest padded validation size",
        "Machine": f"{made['processor']}, {made['threads']} threads",
        "Experiment file": yaml.safe_dump(experiment.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
    }
    if experiment.trunks:
        digests = [digest[:16] for digest in runner.origin["trunk"].split()]
        more["Trunk"] = "; ".join(f"{path}, SHA-256 {digest}" for path, digest in zip(experiment.trunks, digests, strict=False))
    if runner.data.said():
        more["Folds"] = runner.data.said()
    latency, measured = "", read_json(runner.out / LATENCY_FILE)
    if measured:
        made = measured["made_with"]
        latency = f"network only, one image, {measured['precision']}, {LATENCY_ROUNDS} interleaved rounds, {made['processor']}"
        latency += f", {made['threads']} threads"
    data = Path(experiment.data).name + (", train and val" if experiment.folds else "")
    return Facts(data=data, images=runner.held_out.num_images, draws=experiment.draws, latency=latency, more=more)
