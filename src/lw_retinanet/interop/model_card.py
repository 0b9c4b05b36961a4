"""The model card: what a stranger must know of a model before using it, in the form that the Hugging Face hub reads."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from lw_retinanet.weights.model_file import ModelRecord

LIBRARY = "lw-retinanet"
TASK = "object-detection"
# Keys of metrics.json, with what they are in the card.
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
    """Facts of a model, and the two forms in which a hub shows them.

    Args:
        record: of the model file.
        size_hw: height and width of the input that ``macs`` are for, pixels.
        macs: multiply-accumulates of one image; None where this backbone cannot be counted.
        params: number of weights.
        metrics: as ``metrics.json`` has them, AP in 0..1; None where the model was not evaluated.
        licence: identifier of the hub's list, such as ``apache-2.0``; None where nobody said.
        dataset: what it was trained and evaluated on; None where that is not known.
    """

    record: ModelRecord
    size_hw: tuple[int, int]
    macs: int | None
    params: int
    metrics: Mapping[str, Any] | None = None
    licence: str | None = None
    dataset: str | None = None

    def config(self) -> dict[str, Any]:
        """``config.json``: the facts for programs. The model file alone decides what is loaded."""
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
        """What stands between the ``---`` lines, under the hub's own keys."""
        values: dict[str, Any] = {"license": self.licence or "other"}
        if self.licence is None:
            values["license_name"] = "unknown"
        tags = list(dict.fromkeys([TASK, "retinanet", "light-weight", _line(self.record.preset), _line(self.record.backbone)]))
        values |= {"library_name": LIBRARY, "pipeline_tag": TASK, "tags": tags}
        # Only a name with an owner can be one of the hub's own data sets, to which it then links.
        if self.dataset and re.fullmatch(r"[\w.-]+/[\w.-]+", self.dataset):
            values["datasets"] = [self.dataset]
        scores = self._scores()
        if scores:
            values["metrics"] = ["mean_average_precision"]
            values["model-index"] = [{"name": self._title(), "results": [self._result(scores)]}]
        return values

    def text(self, name: str) -> str:
        """The whole ``README.md``.

        Args:
            name: what ``from_pretrained`` is given: a repository id or a folder.
        """
        front = yaml.safe_dump(self.front_matter(), sort_keys=False, allow_unicode=True, width=10_000)
        call = f'lw.from_pretrained({_literal(name)}).predict("photo.jpg")'
        sections = [
            f"# {_plain(self._title())}",
            self._introduction(),
            f"## Use\n\n```python\nimport lw_retinanet as lw\n\nresults = {call}\n```\n\n"
            "Needs `pip install 'lw-retinanet[hub]'`. Each result has `boxes` (x1, y1, x2, y2 in pixels of the picture), `scores`, "
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
        number = f"{images:,} pictures" if isinstance(images, int) else "pictures"
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
            f"- It knows the classes above and no others. On pictures unlike those it was trained on, expect less than is said here.\n"
            f"- Pictures are resized: {side}. An object of a few pixels after that is easily missed.\n"
            "- Scores rank detections; they are not calibrated probabilities. Choose a threshold on pictures of your own.\n"
            "- Nothing has been measured about fairness or safety. Do not let it decide about people."
        )

    def _licence(self) -> str:
        said = f"{_plain(self.licence)}." if self.licence else "Not stated by whoever made this file: ask them before you use it."
        return f"## Licence\n\n{said}"

    def _scores(self) -> dict[str, float]:
        """What was measured; COCO writes -1 where there was nothing to find."""
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
    """Text on one line: no end of line can end the front matter."""
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Text on one line, without what Markdown or HTML would read as more than text."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _line(text))


def _literal(text: str) -> str:
    """A Python string that stays on its line."""
    return '"' + _line(text.replace("`", "")).replace("\\", "\\\\").replace('"', '\\"') + '"'
