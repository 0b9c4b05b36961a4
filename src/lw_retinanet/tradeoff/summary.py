"""Finished runs -> the rows of the table, and all that is made of them."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lw_retinanet.counting.latency import measure_latency
from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.data.preprocess import padded_size, resized_size
from lw_retinanet.errors import InputError
from lw_retinanet.evaluation.paired import Drawn, drawn_scores
from lw_retinanet.files import write_text
from lw_retinanet.heads import plan_of
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.tradeoff.experiment import Cell
from lw_retinanet.tradeoff.report import Facts
from lw_retinanet.tradeoff.rows import BlockCost, Latency, Role, Row, joined
from lw_retinanet.tradeoff.runner import Bench, SeedRun, made_with
from lw_retinanet.tradeoff.verdict import Initialisation, Pair, against_line

LATENCY_FILE = "latency.json"
LATENCY_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that the finished runs say.

    Args:
        rows: of the table, in the experiment's order.
        initialisation: heads that were trained from two initialisations of their light layers.
        pairs: that the experiment asks for, as far as both rows are there.
    """

    rows: Sequence[Row]
    initialisation: Sequence[Initialisation]
    pairs: Sequence[Pair]


def summarise(bench: Bench, *, command: Sequence[str]) -> Summary:
    """Make rows of the cells of which at least one run is finished.

    Args:
        bench: of the experiment.
        command: that opens this experiment, word by word, without ``--out``: what repeats a row begins with it.

    Raises:
        InputError: if no run is finished, or there are too few validation images for an interval.
    """
    experiment = bench.experiment
    finished = {
        cell: runs
        for cell in experiment.cells()
        if (runs := [run for seed in experiment.seeds if bench.result(run := SeedRun(cell=cell, seed=seed)) is not None])
    }
    if not finished:
        raise InputError(f"{bench.out} holds no finished run yet; run the experiment first")
    drawn = {
        cell: drawn_scores(bench.held_out, [bench.detections(run) for run in runs], draws=experiment.draws)
        for cell, runs in finished.items()
    }
    counts = {cell: _count(bench, cell) for cell in finished}
    scaling = [
        (sum(cost.macs for cost in counts[cell][1].values()), drawn[cell]) for cell in finished if cell.line == experiment.lines[0].name
    ]
    latency = _known_latency(bench)
    baseline = drawn.get(experiment.baseline)
    rows = [
        _row(bench, cell, finished[cell], drawn[cell], counts[cell], scaling=scaling, baseline=baseline, latency=latency, command=command)
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
    """Each light head that was trained with the paper's initialisation and with fan-in, best with fan-in in its own layers alone."""
    found = []
    for cell, with_paper in drawn.items():
        if cell.variant.init != "paper" or not _is_light(cell):
            continue
        for init in ("fan_in_light", None, "fan_in"):
            other = replace(cell, variant=cell.variant.model_copy(update={"init": init}))
            match = next((drawn[known] for known in drawn if replace(known, line=cell.line) == other), None)
            if match:
                found.append(Initialisation(preset=cell.variant.preset, interval=match.against(with_paper)["AP"]))
                break
    return found


def _role(bench: Bench, cell: Cell) -> Role:
    if cell.line == bench.experiment.lines[0].name:
        return "baseline" if cell == bench.experiment.baseline else "scaling"
    return "light" if _is_light(cell) and cell.variant.init is None else "other"


def _is_light(cell: Cell) -> bool:
    plan = plan_of(cell.variant.preset)
    return bool(plan.cls or plan.bbox)


def _row(
    bench: Bench,
    cell: Cell,
    runs: Sequence[SeedRun],
    drawn: Drawn,
    count: tuple[tuple[int, int], dict[str, BlockCost]],
    *,
    scaling: Sequence[tuple[int, Drawn]],
    baseline: Drawn | None,
    latency: dict[str, dict[str, float]],
    command: Sequence[str],
) -> Row:
    size_hw, blocks = count
    results = [bench.result(run) or {} for run in runs]
    macs = sum(cost.macs for cost in blocks.values())
    times = latency.get(cell.name)
    return Row(
        line=cell.line,
        role=_role(bench, cell),
        regime=cell.regime,
        variant=cell.variant.label,
        preset=cell.variant.preset,
        scale=cell.scale,
        size_hw=size_hw,
        macs=macs,
        params=sum(cost.params for cost in blocks.values()),
        blocks=blocks,
        latency_ms=Latency(times["median"], times["p10"], times["p90"]) if times else None,
        seeds=tuple(run.seed for run in runs),
        aps=tuple(float(result["AP"]) for result in results),
        metrics=drawn.estimates(),
        against_baseline=None if baseline is None or cell == bench.experiment.baseline else drawn.against(baseline)["AP"],
        against_scaling=against_line(drawn, macs, scaling) if _role(bench, cell) == "light" else None,
        seconds=sum(float(result["seconds"]) for result in results) / len(results),
        command=shlex.join([*command, "--out", "again", "--only", cell.name]),
        made_with=joined(result["made_with"] for result in results),
    )


def counted_size(bench: Bench, model: RetinaNet) -> tuple[int, int]:
    """The padded network input that most validation pictures have for a model: what its arithmetic and its latency are for."""
    rule = model.conventions.input
    sizes = Counter(
        padded_size([resized_size((height, width), rule)], rule.pad_multiple) for height, width in bench.held_out.sizes_hw.tolist()
    )
    return max(sizes, key=lambda size: (sizes[size], size))


def _count(bench: Bench, cell: Cell) -> tuple[tuple[int, int], dict[str, BlockCost]]:
    model = bench.model(cell)
    size_hw = counted_size(bench, model)
    return size_hw, {name: BlockCost(macs=cost.macs, params=cost.params) for name, cost in count_blocks(model, size_hw).items()}


def measure_rows(bench: Bench, cells: Sequence[Cell]) -> None:
    """Measure the latency of rows side by side in one go, and keep it in the experiment's folder."""
    models = {cell.name: bench.model(cell) for cell in cells}
    sizes = {name: counted_size(bench, model) for name, model in models.items()}
    # Rows that differ in training alone are one network; measuring it once says the same about all.
    first: dict[tuple[Any, ...], str] = {}
    same = {cell.name: first.setdefault((cell.variant.preset, cell.variant.anchors, cell.scale), cell.name) for cell in cells}
    wanted = sorted(set(same.values()))
    times = measure_latency(
        {name: models[name] for name in wanted},
        size_hw={name: sizes[name] for name in wanted},
        device=bench.device,
        rounds=LATENCY_ROUNDS,
    )
    precision = "bf16" if all("bf16" in entry for entry in times.values()) else "fp32"
    content = {
        "precision": precision,
        "made_with": made_with(),
        "rows": {name: times[representative][precision] for name, representative in same.items()},
    }
    write_text(bench.out / LATENCY_FILE, json.dumps(content, indent=1) + "\n")


def has_latency(bench: Bench, cells: Sequence[Cell]) -> bool:
    """Whether all these rows have been measured."""
    return set(_known_latency(bench)) >= {cell.name for cell in cells}


def _known_latency(bench: Bench) -> dict[str, dict[str, float]]:
    file = bench.out / LATENCY_FILE
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else {}


def facts(bench: Bench) -> Facts:
    """What all rows rest on."""
    experiment = bench.experiment
    config = experiment.config(experiment.baseline, experiment.seeds[0])
    made, train = made_with(), config.train
    length = f"{train.steps} steps" if train.steps else f"{train.epochs} epochs"
    more = {
        "Pictures to learn from": bench.records.summary(),
        "Training": f"{length} of {train.batch_size} images, {train.optimiser}, peak rate {train.rate:g}, {train.schedule} schedule",
        "Seeds": ", ".join(map(str, experiment.seeds)),
        "Arithmetic": "multiply-accumulates of convolutions for one image of the commonest padded validation size",
        "Machine": f"{made['processor']}, {made['threads']} threads",
        "Experiment file": yaml.safe_dump(experiment.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
    }
    if experiment.trunk is not None:
        more["Trunk"] = f"{experiment.trunk}, SHA-256 {bench.origin['trunk'][:16]}"
    file = bench.out / LATENCY_FILE
    latency = ""
    if file.is_file():
        measured = json.loads(file.read_text(encoding="utf-8"))
        made = measured["made_with"]
        latency = f"network only, one image, {measured['precision']}, {LATENCY_ROUNDS} interleaved rounds, {made['processor']}"
        latency += f", {made['threads']} threads"
    return Facts(data=Path(experiment.data).name, images=bench.held_out.num_images, draws=experiment.draws, latency=latency, more=more)
