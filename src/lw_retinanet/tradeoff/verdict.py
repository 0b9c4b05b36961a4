"""The verdict: what the table says in words. Every sentence follows from an interval."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lw_retinanet.evaluation.paired import Drawn, Interval
from lw_retinanet.tradeoff.rows import ExperimentRow, baseline_row, light_rows, scaling_rows


@dataclass(frozen=True, kw_only=True)
class Initialisation:
    """One head trained from two initialisations.

    Args:
        preset: Name of the head.
        interval: AP with fan-in initialisation minus AP with the paper's, paired.
    """

    preset: str
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows that the experiment asks to compare.

    Args:
        name_a, name_b: Names of the rows.
        interval: AP of B minus AP of A, paired.
    """

    name_a: str
    name_b: str
    interval: Interval


def against_line(row: Drawn, macs: int, line: Sequence[tuple[int, Drawn]]) -> Interval | None:
    """AP of a row minus that of the scaling line at the same MACs.

    Between two measured sizes the line is straight in MACs. This holds for every draw, in which line and row are scored on the same images.
    Sizes that have the same MACs because of padding count as one, with the mean of their AP.

    Args:
        row: Scores of the row.
        macs: MACs of the row.
        line: MACs and scores of the rows of the scaling line, in any order.

    Returns:
        The interval, in which ``a`` is the line and ``b`` the row; None outside the measured sizes, see :func:`why_not`.

    Raises:
        InputError: if the draws are not of the same images.
    """
    if why_not(macs, [cost for cost, _ in line]) is not None:
        return None
    for _, scores in line:
        row.against(scores)  # the same images, or an error
    places = sorted({cost for cost, _ in line})
    points = [_mean([scores for cost, scores in line if cost == place]) for place in places]
    after = max(1, int(np.searchsorted(places, macs)))
    if len(points) == 1:
        return row.against(points[0])["AP"]
    low, high = places[after - 1 : after + 1]
    fewer, more, share = points[after - 1], points[after], (macs - low) / (high - low)
    values = (1 - share) * fewer.values + share * more.values
    draws = (1 - share) * fewer.draws + share * more.draws
    return row.against(replace(fewer, values=values, draws=draws))["AP"]


def why_not(macs: int, line: Sequence[int]) -> str | None:
    """Why a row cannot be compared with a scaling line of these MACs, in words; None if it can."""
    if not line:
        return "no size of the scaling line was run"
    low, high = min(line), max(line)
    if low <= macs <= high:
        return None
    side, end = ("below", low) if macs < low else ("above", high)
    return f"its {_giga(macs)} GMACs lie {side} the scaling line's {'smallest' if macs < low else 'largest'} size ({_giga(end)})"


def verdict(
    rows: Sequence[ExperimentRow], *, images: int, initialisation: Sequence[Initialisation] = (), pairs: Sequence[Pair] = ()
) -> list[str]:
    """The answer in plain sentences: first for all heads, then row by row, then for pairs of rows and for the initialisation.

    Args:
        rows: All rows.
        images: Number of images that AP was measured on.
        initialisation: Heads that were trained from two initialisations.
        pairs: Pairs of rows that the experiment asks to compare.
    """
    light, line = light_rows(rows), scaling_rows(rows)
    sentences = [_overall(light, images)]
    sentences += [_sentence(row, line, baseline_row(rows), images) for row in light]
    sentences += [_on_pair(pair, images) for pair in pairs]
    return sentences + [_on_initialisation(test, rows, images) for test in initialisation]


def _overall(rows: Sequence[ExperimentRow], images: int) -> str:
    compared = [(row, row.against_scaling) for row in rows if row.against_scaling]
    if not compared:
        return "Not answered: no light head has MACs within the measured range of the scaling line."
    wins = [row.name for row, interval in compared if _sign(interval) > 0]
    losses = [row.name for row, interval in compared if _sign(interval) < 0]
    ties = [row.name for row, interval in compared if not _sign(interval)]
    num = len(compared)
    if max(len(wins), len(losses), len(ties)) == num:
        answer = "Yes" if wins else "No" if losses else "Undecided"
    else:
        answer = "It depends on the head" if wins and losses else "For some heads" if wins else "For some heads not"
    groups = (
        (wins, "beats", "beat", "shrinking the image"),
        (losses, "loses to", "lose to", "shrinking the image"),
        (ties, "cannot", "cannot", f"be told apart from shrinking the image on {images:,} images"),
    )
    said = [
        f"{len(names)} of {num} light heads {one if len(names) == 1 else several} {what} ({'; '.join(names)})"
        if num > 1
        else f"{names[0]} {one} {what}"
        for names, one, several, what in groups
        if names
    ]
    return f"{answer}. At equal MACs {', '.join(said)}."


def _sentence(row: ExperimentRow, line: Sequence[ExperimentRow], baseline: ExperimentRow | None, images: int) -> str:
    """One row against the scaling line, and against the baseline."""
    interval = row.against_scaling
    if interval is None:
        reason = why_not(row.macs, [other.macs for other in line]) or "it was not computed"
        said = f"{row.name} cannot be compared with shrinking the image: {reason}"
    elif sign := _sign(interval):
        low, high = sorted((abs(interval.low), abs(interval.high)))
        amount = f"{100 * sign * interval.difference:.2f} points ({100 * low:.2f} to {100 * high:.2f})"
        said = f"{row.name} {'beats' if sign > 0 else 'loses to'} shrinking the image at equal MACs by {amount}"
    else:
        said = f"{row.name} cannot be told apart from shrinking the image at equal MACs: {_shift(interval)} {_basis(row, images)}"
    if interval and row.regime != line[0].regime:
        said += f", though the two came about differently ({row.regime} and {line[0].regime})"
    if row.against_baseline is None or baseline is None:
        return f"{said}."
    ratio = baseline.macs / row.macs
    cost = f"{ratio:.2f}x fewer MACs" if ratio >= 1 else f"{1 / ratio:.2f}x more MACs"
    return f"{said}. Against {baseline.name}: {_shift(row.against_baseline)} at {cost}."


def _on_pair(pair: Pair, images: int) -> str:
    sign = _sign(pair.interval)
    if not sign:
        return f"{pair.name_b} and {pair.name_a} cannot be told apart on {images:,} images: {_shift(pair.interval)}."
    return f"{pair.name_b} finds {'more' if sign > 0 else 'less'} than {pair.name_a}: {_shift(pair.interval)}."


def _on_initialisation(test: Initialisation, rows: Sequence[ExperimentRow], images: int) -> str:
    """Judge the hypothesis that the paper's initialisation, not the block, keeps such a head from learning."""
    interval, sign = test.interval, _sign(test.interval)
    seeds = max((len(row.seeds) for row in rows if row.preset == test.preset), default=1)
    shift = f"fan-in minus the paper's is {_shift(interval)}"
    if sign > 0:
        return f"Initialisation of {test.preset}: confirmed that the paper's holds it back; {shift}."
    if sign < 0:
        return f"Initialisation of {test.preset}: refuted; it does better with the paper's, {shift}."
    most = max(0.0, interval.high)
    return (
        f"Initialisation of {test.preset}: undecided on {images:,} images and {_seeds(seeds)}; {shift}, "
        f"so the paper's costs it at most {100 * most:.2f} points."
    )


def _sign(interval: Interval) -> int:
    """1 or -1 if the whole interval is above or below zero, else 0."""
    return int(np.sign(interval.low)) if interval.low * interval.high > 0 else 0


def _mean(scores: Sequence[Drawn]) -> Drawn:
    values, draws = np.mean([one.values for one in scores], axis=0), np.mean([one.draws for one in scores], axis=0)
    return replace(scores[0], values=values, draws=draws)


def _basis(row: ExperimentRow, images: int) -> str:
    return f"on {images:,} images and {_seeds(len(row.seeds))}"


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _shift(interval: Interval) -> str:
    return f"{100 * interval.difference:+.2f} points ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.4g}"
