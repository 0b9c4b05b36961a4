"""The page of a training run. It begins with what to do next."""

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import yaml

from lw_retinanet import __version__
from lw_retinanet.counting.profile import Profile
from lw_retinanet.data.data_use import data_use
from lw_retinanet.data.records import Records
from lw_retinanet.evaluation.coco_metrics import AREA_NAMES
from lw_retinanet.evaluation.match_tables import AREA_RANGES
from lw_retinanet.evaluation.report import pr_figure
from lw_retinanet.page import (
    Html,
    Shaded,
    answer,
    bullets,
    command,
    contents,
    definitions,
    document,
    figures,
    folded,
    joined,
    link,
    paragraph,
    section,
    strong,
    subheading,
    table,
)
from lw_retinanet.reporting.evidence import Evidence, Scored
from lw_retinanet.reporting.figures import calibration_figure, class_figure, error_figure, size_figure
from lw_retinanet.reporting.findings import Finding
from lw_retinanet.reporting.samples import crops, describe, pairs
from lw_retinanet.training.curves import curves_figure

_SHOWN_IMAGES = 4  # of the best, and of the worst
_SHOWN_CROPS = 12
_LISTED_LABELS = 100
_CONFUSED_CLASSES = 15
_NONE = "-"
TITLES = {
    "missing": "What is missing",
    "training": "Training",
    "classes": "Classes",
    "sizes": "Sizes",
    "errors": "Errors",
    "calibration": "Scores",
    "images": "Images",
    "labels": "Labels",
    "data": "Data set",
    "cost": "Cost",
    "provenance": "Provenance",
}


def run_page(evidence: Evidence, found: Sequence[Finding], cost: Profile | None, measured: str) -> str:
    """The HTML of the page.

    Args:
        evidence: All that is known of the run.
        found: What to do next.
        cost: MACs, parameters and latency of the model; None without a model.
        measured: Where the latency was measured.
    """
    scored = evidence.scored
    sections = [section("missing", TITLES["missing"], bullets(evidence.missing))] if evidence.missing else []
    sections.append(_training(evidence))
    if scored:
        sections += [
            _classes(evidence, scored),
            section("sizes", TITLES["sizes"], figures([size_figure(scored)], level=3)),
            section("errors", TITLES["errors"], figures([error_figure(scored.diagnosis)], level=3), _confusion(scored)),
            section("calibration", TITLES["calibration"], figures([calibration_figure(scored.diagnosis)], level=3)),
            _images(scored),
            _labels(scored),
        ]
    sections += [*_data(evidence), *_cost(cost, measured), _provenance(evidence)]
    shown = {name: title for name, title in TITLES.items() if any(f'<h2 id="{name}">' in one for one in sections)}
    top = [answer(_summary(evidence)), Html("<h2>What to do next</h2>"), _found(found), contents(shown)]
    return document(f"Training run {evidence.folder.resolve().name}", top, sections)


def _summary(evidence: Evidence) -> list[str]:
    scored = evidence.scored
    what = f"{_model_name(evidence)}, {evidence.steps:,} steps"
    if scored is None:
        return [f"{what}: not evaluated."]
    ap, interval = scored.metrics, scored.estimates.get("AP")
    if ap.AP < 0:
        return [f"{what}: the {scored.records.num_images:,} validation images have no box to find."]
    between = f" (95 %: {100 * interval.low:.1f} to {100 * interval.high:.1f})" if interval else ""
    return [f"{what}: AP {100 * ap.AP:.1f}{between}, AP50 {100 * ap.AP50:.1f} on {scored.records.num_images:,} images."]


def _model_name(evidence: Evidence) -> str:
    if evidence.model:
        return f"{evidence.model.record.preset} on {evidence.model.record.backbone}"
    names = [evidence.setting("model", name) for name in ("preset", "backbone")]
    return " on ".join(str(name) for name in names if name) or "a model"


def _found(found: Sequence[Finding]) -> Html:
    if not found:
        return paragraph("Nothing in the figures stands out. Look at the worst images before you train again.")
    return bullets([joined(strong(one.what), " ", one.do, " ", link(one.section, "Show")) for one in found], kind="findings")


def _training(evidence: Evidence) -> Html:
    points = evidence.ap_over_time
    log = [entry for entry in evidence.log if "loss" in entry]
    drawn = curves_figure([*log, *({"step": step, "AP": ap} for step, ap in points)])
    said = []
    if len(points) < 2 and evidence.held_out:
        said.append("AP was not measured during the training; train.evaluate_every=1 does it after every epoch.")
    if log:
        epochs = log[-1].get("epoch")
        length = f"{evidence.steps:,} steps" + (f", {epochs + 1:,} epochs" if isinstance(epochs, int) else "")
        said.append(f"{length}, {_time(evidence.seconds)}; loss {log[0]['loss']:.3g} at first, {log[-1]['loss']:.3g} at last.")
    return section("training", TITLES["training"], figures([drawn] if drawn else [], level=3), *(paragraph(one) for one in said))


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _classes(evidence: Evidence, scored: Scored) -> Html:
    said, names = scored.diagnosis, scored.records.class_names
    learned: list[int] | None = None
    if evidence.train and evidence.train.class_names == names:
        learned = np.bincount(evidence.train.labels[~evidence.train.is_ignored], minlength=len(names)).tolist()
    counts = [np.bincount(scored.detections.labels[rows], minlength=len(names)) for rows in (said.is_right, said.is_wrong)]
    missed = np.bincount(scored.records.labels[said.is_missed], minlength=len(names))
    rows = []
    for label, one in enumerate(scored.metrics.per_class):
        estimate = scored.classes[label] if scored.classes else None
        between = f" ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})" if estimate else ""
        right, wrong = int(counts[0][label]), int(counts[1][label])
        rows.append(
            [
                one.name,
                f"{100 * one.AP:.1f}{between}" if one.AP >= 0 else _NONE,
                f"{100 * one.AP50:.1f}" if one.AP50 >= 0 else _NONE,
                f"{right / (right + wrong):.0%}" if right + wrong else _NONE,
                f"{1 - missed[label] / one.boxes:.0%}" if one.boxes else _NONE,
                *(f"{number:,}" for number in (right, wrong, int(missed[label]))),
                f"{one.boxes:,} in {one.images:,}",
                f"{learned[label]:,}" if learned else _NONE,
            ]
        )
    header = ["class", "AP (95 %)", "AP50", "precision", "recall", "right", "wrong", "missed", "boxes in images", "boxes to learn from"]
    note = (
        f"AP in points. From precision to missed: detections of score {said.score:.2f} and more, at IoU 0.5; this score gives the best "
        f"F1 over all classes (precision {said.precision:.0%}, recall {said.recall:.0%})."
    )
    drawn = [one for one in (class_figure(scored), pr_figure(scored.metrics)) if one]
    notes = [paragraph(f"{one[:1].upper()}{one[1:]}.") for one in scored.metrics.notes]
    return section(
        "classes", TITLES["classes"], table("classes", header, rows), paragraph(note, is_soft=True), *notes, figures(drawn, level=3)
    )


def _confusion(scored: Scored) -> Html:
    matrix, names = scored.diagnosis.confusion, [*scored.records.class_names, "nothing"]
    nothing = len(names) - 1
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    shown = [*sorted(sorted(range(nothing), key=lambda label: -wrong[label])[:_CONFUSED_CLASSES]), nothing]
    rows: list[list[str | Shaded]] = []
    for truth in shown:
        total = int(matrix[truth].sum())
        cells = [f"{int(matrix[truth, said]):,} ({matrix[truth, said] / total:.0%})" if matrix[truth, said] else "" for said in shown]
        rows.append([names[truth], *(Shaded(cell, matrix[truth, said] / max(total, 1)) for cell, said in zip(cells, shown, strict=True))])
    part = f" The {len(shown) - 1} classes of {nothing:,} with the most errors." if nothing > _CONFUSED_CLASSES else ""
    note = (
        f"Rows are labels, columns are detections of score {scored.diagnosis.score:.2f} and more, matched at IoU 0.5 whatever the class. "
        "A cell has the number and its share of the row. The column “nothing” has missed labels, the row “nothing” detections without a "
        f"label.{part}"
    )
    header = ["label \\ detection", *(names[said] for said in shown)]
    return joined(
        Html('<h3 id="confusion">Which class is taken for which</h3>'), table("confusion", header, rows), paragraph(note, is_soft=True)
    )


def _images(scored: Scored) -> Html:
    worst = scored.diagnosis.worst_images[:_SHOWN_IMAGES]
    best = [image for image in scored.diagnosis.best_images if image not in worst][:_SHOWN_IMAGES]
    parts: list[Html] = []
    for title, images in (("The worst: the most errors", worst), ("The best", best)):
        drawn = pairs(scored, images)
        parts += [subheading(title), drawn.html]
        if drawn.unreadable:
            parts.append(paragraph(f"{drawn.unreadable} of these {len(images)} images cannot be read any more at {scored.records.root}."))
        if not images:
            parts.append(paragraph("There is none."))
    note = (
        f"Detections of score {scored.diagnosis.score:.2f} and more. A dashed frame says that a label was missed, or a detection is wrong."
    )
    return section("images", TITLES["images"], paragraph(note, is_soft=True), *parts)


def _labels(scored: Scored) -> Html:
    said = scored.diagnosis
    doubted = [one for one in said.suspects if one.kind != "never found"]
    unseen = [one for one in said.suspects if one.kind == "never found"]
    if said.trusted_score is None:
        how = "No score is high enough for nine of ten detections to be right, so none is trusted to doubt a label."
    else:
        how = f"From score {said.trusted_score:.2f} on nine of ten detections are right. {len(doubted):,} of these contradict the labels."
    parts: list[Html] = [paragraph(how)]
    for title, suspects in (("Sure detections that contradict the labels", doubted), ("Labels that nothing was found near", unseen)):
        if not suspects:
            continue
        drawn = crops(scored, suspects[:_SHOWN_CROPS])
        parts += [subheading(f"{title}: {len(suspects):,}"), drawn.html]
        if drawn.unreadable:
            parts.append(paragraph(f"{drawn.unreadable} of their images cannot be read any more at {scored.records.root}."))
    rows = [
        [scored.records.file_names[one.image], describe(scored, one), ", ".join(f"{value:.0f}" for value in one.box_xywh)]
        for one in [*doubted, *unseen][:_LISTED_LABELS]
    ]
    if rows:
        rest = len(doubted) + len(unseen) - len(rows)
        more = f"The first {len(rows):,} of {len(rows) + rest:,}." if rest else "All of them."
        listed = joined(table("labels", ["image", "what", "x, y, width, height"], rows))
        parts.append(folded(f"As a list. {more}", listed))
    parts.append(
        paragraph(
            "A label that nothing was found near is wrong, or hard: a weak model leaves many, so look at the largest first.", is_soft=True
        )
    )
    return section("labels", TITLES["labels"], *parts)


def _data(evidence: Evidence) -> Iterator[Html]:
    splits = {name: records for name, records in (("train", evidence.train), ("val", evidence.held_out)) if records}
    if not splits:
        return
    header = [
        "split",
        "images",
        "without a box",
        "boxes",
        "boxes an image",
        *(f"{name} boxes" for name in AREA_NAMES[1:]),
        "crowd",
        "difficult",
    ]
    rows = [[name, *_split_cells(records)] for name, records in splits.items()]
    used = [
        paragraph(f"{name}: {sentence}.")
        for name, records in splits.items()
        if (sentence := data_use(records, scoring=name == "val").sentence())
    ]
    noted = evidence.notes.get("summary")
    now = evidence.train.summary() if evidence.train else noted
    changed = [paragraph(f"The data set has changed since the training: {noted} then, {now} now.")] if noted not in (now, None) else []
    yield section("data", TITLES["data"], table("data", header, rows), *used, *changed)


def _split_cells(records: Records) -> list[str]:
    counts = np.diff(records.offsets)
    sizes = [int(((records.areas >= low) & (records.areas <= high) & ~records.is_ignored).sum()) for low, high in AREA_RANGES[1:]]
    return [
        f"{records.num_images:,}",
        f"{int((counts == 0).sum()):,}",
        f"{records.num_boxes:,}",
        f"{counts.mean():.1f} (up to {counts.max():,})" if len(counts) else _NONE,
        *(f"{size:,} ({size / max(sum(sizes), 1):.0%})" for size in sizes),
        f"{int(records.is_crowd.sum()):,}",
        f"{int(records.is_difficult.sum()):,}",
    ]


def _cost(cost: Profile | None, measured: str) -> Iterator[Html]:
    if cost is None:
        return
    times = [
        f"{precision}: {one['median']:.1f} ms (10 % to 90 %: {one['p10']:.1f} to {one['p90']:.1f})"
        for precision, one in (cost.latency_ms or {}).items()
    ]
    latency = paragraph(f"The network alone, one image: {'; '.join(times)}. {measured}") if times else Html()
    size = f"{cost.size_hw[0]} x {cost.size_hw[1]}"
    note = f"For one image of {size} pixels; FLOPs = 2 x MACs. C: backbone, P: pyramid, D: the head as applied to P."
    yield section("cost", TITLES["cost"], latency, cost.table(), paragraph(note, is_soft=True))


def _provenance(evidence: Evidence) -> Html:
    notes = evidence.notes
    made = {
        "Run folder": str(evidence.folder),
        "Data set": " ".join(str(one) for one in (evidence.source, f"({notes['summary']})" if "summary" in notes else "") if one),
        "Fingerprint of the training data": str(notes.get("fingerprint", "")),
        "Seed": str(evidence.setting("train", "seed") if evidence.setting("train", "seed") is not None else ""),
        "Trained with": ", ".join(
            f"{what} {notes[key]}" for key, what in (("version", "lw_retinanet"), ("torch", "torch")) if key in notes
        ),
        "Processes": str(notes.get("processes", "")),
        "This page made with": f"lw_retinanet {__version__}",
        **_weights_notes(evidence),
    }
    settings = yaml.safe_dump(dict(evidence.settings), sort_keys=False, allow_unicode=True)
    return section(
        "provenance",
        TITLES["provenance"],
        definitions({name: value for name, value in made.items() if value}),
        paragraph("The same training again:"),
        command(evidence.repeat_command, label="command that repeats the training"),
        folded("All settings", definitions({"config.yaml": settings})),
    )


def _weights_notes(evidence: Evidence) -> Mapping[str, str]:
    """What the model file says about the weights that the run started from."""
    if evidence.model is None:
        return {}
    others = {name: value for name, value in evidence.model.record.notes.items() if name not in ("data", "settings")}
    return {
        name[:1].upper() + name[1:].replace("_", " "): value if isinstance(value, str) else json.dumps(value)
        for name, value in others.items()
    }
