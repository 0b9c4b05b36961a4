"""The model card: what people must know about a model before they use it, in the form that the Hugging Face hub reads."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from lw_retinanet.weights.model_file import ModelRecord

LIBRARY = "lw-retinanet"
TASK = "object-detection"
# Keys of metrics.json -> their names in the card.
MEASURES = {
    "AP": "AP, IoU 0.50:0.95",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "APs, up to 32 x 32 pixels",
    "APm": "APm, up to 96 x 96 pixels",
    "APl": "APl, larger",
}
_NAMES_SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Facts about a model, and the two files that present them on a hub.

    Args:
        record: Record of the model file.
        size_hw: Height and width in pixels of the input that ``macs`` are for.
        macs: Multiply-accumulates of one image; None if the layers of the backbone cannot be counted.
        params: Number of weights.
        metrics: The content of ``metrics.json``, with AP in 0..1; None if the model was not evaluated.
        licence: Identifier in the hub's list of licences, such as ``apache-2.0``; None if the licence is not known.
        dataset: Name of the data set that the model was trained and evaluated on; None if it is not known.
    """

    record: ModelRecord
    size_hw: tuple[int, int]
    macs: int | None
    params: int
    metrics: Mapping[str, Any] | None = None
    licence: str | None = None
    dataset: str | None = None

    def config(self) -> dict[str, Any]:
        """Return the content of ``config.json``: the facts for programs. Loading a model reads the model file alone."""
        record = self.record
        return {
            "library_name": LIBRARY,
            "version": record.version,
            "model_type": "retinanet",
            "preset": record.preset,
            "backbone": record.backbone,
            "width": record.width,
            "norm": record.norm,
            "plan": asdict(record.plan),
            "classes": [{"label": label, "id": one.id, "name": one.name} for label, one in enumerate(record.categories)],
            "conventions": record.conventions.model_dump(mode="json"),
            "size_hw": list(self.size_hw),
            "macs": self.macs,
            "params": self.params,
            "metrics": self._scores(),
        }

    def front_matter(self) -> dict[str, Any]:
        """Return the content between the ``---`` lines of the card, under the hub's keys."""
        values: dict[str, Any] = {"license": self.licence or "other"}
        if self.licence is None:
            values["license_name"] = "unknown"
        tags = list(dict.fromkeys([TASK, "retinanet", "light-weight", _line(self.record.preset), _line(self.record.backbone)]))
        values |= {"library_name": LIBRARY, "pipeline_tag": TASK, "tags": tags}
        # The hub links to its own data sets, whose names have an owner.
        if self.dataset and re.fullmatch(r"[\w.-]+/[\w.-]+", self.dataset):
            values["datasets"] = [self.dataset]
        scores = self._scores()
        if scores:
            values["metrics"] = ["mean_average_precision"]
            values["model-index"] = [{"name": self._title(), "results": [self._result(scores)]}]
        return values

    def text(self, name: str) -> str:
        """Return the content of ``README.md``.

        Args:
            name: The argument of ``from_pretrained`` in the card's example: a repository id or a folder.
        """
        front = yaml.safe_dump(self.front_matter(), sort_keys=False, allow_unicode=True, width=10_000)
        call = f'lw.from_pretrained({_literal(name)}).predict("photo.jpg")'
        sections = [
            f"# {_plain(self._title())}",
            self._introduction(),
            f"## Use\n\n```python\nimport lw_retinanet as lw\n\nresults = {call}\n```\n\n"
            "Needs `pip install 'lw-retinanet[hub]'`. Each result has `boxes` (x1, y1, x2, y2 in pixels of the image), `scores`, "
            '`labels` and `names`; `results[0].save("out.jpg")` draws them.',
            self._accuracy(),
            self._cost(),
            self._classes(),
            self._limits(),
            self._licence(),
        ]
        return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"

    def _title(self) -> str:
        place = f" on {self.dataset}" if self.dataset else ""
        return _line(f"{self.record.preset}, {self.record.backbone}{place}")

    def _introduction(self) -> str:
        number = len(self.record.categories)
        trained = f"Trained on {_plain(self.dataset)}." if self.dataset else "Its training data are not recorded."
        return (
            f"A RetinaNet object detector (head {_plain(self.record.preset)}, backbone {_plain(self.record.backbone)}) for {number:,} "
            f"{'class' if number == 1 else 'classes'}. {trained}"
        )

    def _accuracy(self) -> str:
        scores = self._scores()
        if not scores:
            return "## Accuracy\n\nNot measured."
        where = f"of {_plain(self.dataset)}" if self.dataset else "of a data set that is not recorded"
        images = (self.metrics or {}).get("images")
        number = f"{images:,} images" if isinstance(images, int) else "images"
        rows = [f"| {MEASURES[key]} | {value:.4f} |" for key, value in scores.items()]
        return f"## Accuracy\n\nCOCO metrics, from 0 to 1, on {number} {where}.\n\n| measure | value |\n| --- | --- |\n" + "\n".join(rows)

    def _cost(self) -> str:
        height, width = self.size_hw
        macs = "not counted for this backbone" if self.macs is None else f"{self.macs:,} ({2 * self.macs:,} FLOPs)"
        rows = [f"| input | {height} x {width} pixels |", f"| MACs, one image | {macs} |", f"| parameters | {self.params:,} |"]
        table = "\n".join(["| cost | value |", "| --- | --- |", *rows])
        left_out = "Convolutions and linear layers only; normalisation, activations, resizing, anchors and NMS are left out."
        return f"## Cost\n\n{table}\n\n{left_out}"

    def _classes(self) -> str:
        names = [_plain(category.name) for category in self.record.categories]
        more = f", and {len(names) - _NAMES_SHOWN:,} more in `config.json`" if len(names) > _NAMES_SHOWN else ""
        return f"## Classes\n\n{', '.join(names[:_NAMES_SHOWN])}{more}."

    def _limits(self) -> str:
        rule = self.record.conventions.input
        side = f"the longer side becomes {rule.size} pixels"
        if rule.resize == "short_side":
            side = f"the shorter side becomes {rule.size} pixels, the longer one at most {rule.max_size}"
        return (
            "## Limits\n\n"
            "- It knows the classes above and no others. "
            "On images unlike those that it was trained on, its accuracy is lower than stated here.\n"
            f"- Images are resized: {side}. Objects of only a few pixels after that are easily missed.\n"
            "- Scores rank detections; they are not calibrated probabilities. Choose a threshold on images of your own.\n"
            "- Nothing has been measured about fairness or safety. Do not let it decide about people."
        )

    def _licence(self) -> str:
        licence = f"{_plain(self.licence)}." if self.licence else "Not stated by the author of this model: ask before you use it."
        return f"## Licence\n\n{licence}"

    def _scores(self) -> dict[str, float]:
        """The metrics that were measured; COCO writes -1 where there was no object to find."""
        found = {key: (self.metrics or {}).get(key) for key in MEASURES}
        return {key: float(value) for key, value in found.items() if isinstance(value, int | float) and value >= 0}

    def _result(self, scores: Mapping[str, float]) -> dict[str, Any]:
        name = _line(self.dataset or "not recorded")
        return {
            "task": {"type": TASK, "name": "Object detection"},
            "dataset": {"type": name, "name": name},
            "metrics": [
                {"type": "mean_average_precision", "name": MEASURES[key], "value": round(value, 6)} for key, value in scores.items()
            ],
        }


def _line(text: str) -> str:
    """Text on one line, so that no line of it can end the front matter."""
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Text on one line, with the characters of Markdown and HTML escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _line(text))


def _literal(text: str) -> str:
    """A Python string that stays on its line."""
    return '"' + _line(text.replace("`", "")).replace("\\", "\\\\").replace('"', '\\"') + '"'
