"""How a framework names its tensors, and which of its conventions a weights file does not state."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Category
from lw_retinanet.weights.foreign.stated import Statements

# Left out of every conversion, whatever the framework.
_COUNTERS = (r".*\.num_batches_tracked", "a counter of training")
_BLOCK = r"backbone\.layer(?P<stage>\d)\.(?P<block>\d+)"
# Kinds of the convolutions and norms of our networks, each with a regular expression for its name.
_KINDS = {
    "stem": r"backbone\.conv1",
    "stem_norm": r"backbone\.bn1",
    "conv": _BLOCK + r"\.conv(?P<conv>\d)",
    "norm": _BLOCK + r"\.bn(?P<conv>\d)",
    "shortcut": _BLOCK + r"\.downsample\.0",
    "shortcut_norm": _BLOCK + r"\.downsample\.1",
    "lateral": r"fpn\.inner_blocks\.(?P<index>\d)\.0",
    "output": r"fpn\.layer_blocks\.(?P<index>\d)\.0",
    "extra": r"fpn\.extra_blocks\.p(?P<level>\d)",
    **{f"{branch}_unit": rf"head\.{branch}\.shared_units\.(?P<unit>\d+)\.0" for branch in ("cls", "bbox")},
    **{f"{branch}_unit_norm": rf"head\.{branch}\.shared_units\.(?P<unit>\d+)\.1" for branch in ("cls", "bbox")},
    **{f"{branch}_prediction": rf"head\.{branch}\.shared_predict" for branch in ("cls", "bbox")},
}

_OWN = re.compile(r"head\.(?P<branch>cls|bbox)\.own_(?P<part>units|predict)\.P(?P<level>\d)\.(?P<rest>.*)")


class TensorNames:
    """A framework's names for the tensors of our networks.

    Args:
        templates: Kind of a convolution or norm -> the framework's name, with fields in braces. Every name may use ``{parameter}``
            (``weight``, ``running_var``, ...). Names of residual blocks may use ``{stage}`` (1 to 4), ``{res}`` (2 to 5), ``{block}``,
            ``{conv}`` (1 to 3) and ``{letter}`` (a to c); names of the FPN ``{level}`` (3 to 7) and ``{index}`` (0 for level 3); names of
            head units ``{unit}`` (from 0) and ``{twice}`` (0, 2, 4, ...). A kind followed by a number, such as ``lateral5``, is for this
            level or unit only. ``cls_own_units``, ``cls_own_predict`` and the same for ``bbox`` are for light towers, with ``{index}`` and
            ``{rest}``. ``backbone`` is for all tensors of the backbone that have no template of their own, with ``{rest}``.
        parameters: Names of a convolution's parameters in PyTorch -> the framework's; None if they are the same.
        norm_parameters: The same for norms; the framework has none of the parameters that are left out.
    """

    def __init__(
        self, templates: Mapping[str, str], *, parameters: Mapping[str, str] | None = None, norm_parameters: Mapping[str, str] | None = None
    ) -> None:
        self._templates, self._parameters, self._norm_parameters = templates, parameters, norm_parameters

    def __call__(self, ours: str) -> str | None:
        """Return the framework's name of one of our tensors, or None if the framework has no such tensor."""
        module, _, parameter = ours.rpartition(".")
        for kind, pattern in _KINDS.items():
            if match := re.fullmatch(pattern, module):
                fields = _fields(match.groupdict())
                parameters = self._norm_parameters if kind.endswith("norm") else self._parameters
                theirs = parameter if parameters is None else parameters.get(parameter)
                number = fields.get("level", fields.get("unit"))
                template = self._templates.get(f"{kind}{number}") or self._templates.get(kind)
                if template and theirs:
                    return template.format_map({**fields, "parameter": theirs})
        if own := _OWN.fullmatch(ours):
            template = self._templates.get(f"{own['branch']}_own_{own['part']}")
            return template and template.format(index=int(own["level"]) - 3, rest=own["rest"])
        if ours.startswith("backbone.") and "backbone" in self._templates:
            return self._templates["backbone"].format(rest=ours.removeprefix("backbone."))
        return None


def _fields(numbers: Mapping[str, str]) -> dict[str, int | str]:
    """The fields of a template for the numbers in one of our names."""
    found = {name: int(number) for name, number in numbers.items()}
    if "index" in found:
        found["level"] = found["index"] + 3
    elif "level" in found:
        found["index"] = found["level"] - 3
    fields: dict[str, int | str] = {**found}
    if "stage" in found:
        fields["res"] = found["stage"] + 1
    if "conv" in found:
        fields["letter"] = "_abc"[found["conv"]]
    if "unit" in found:
        fields["twice"] = 2 * found["unit"]
    return fields


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """A property of the model that its weights file does not state.

    Args:
        setting: Dotted name of a field of Conventions, or ``classes``.
        value: The value that was assumed.
        why: The reason for this value.
    """

    setting: str
    value: Any
    why: str


@dataclass(frozen=True, kw_only=True)
class WeightsFormat:
    """How to read one weights file of another framework.

    Args:
        framework: Name of the framework, one of ``frameworks.NAMES``.
        generation: Version or variant of the framework's format, for people.
        conventions: The framework's conventions.
        names: The file's names of our tensors.
        unused: Regular expressions for names of tensors that are left out, each with the reason.
        assumed: What the file does not state.
        statements: What the file states: it replaces ``conventions`` and ``assumed``, and names the classes.
        categories: The classes that the file names, in the order of its class rows.
        has_background_row: Whether class row 0 may be the background (torchvision's layout).
        cell_anchors: For each level the (anchors, 4) anchors around (0, 0) that the file stores; the conventions must give the same ones.
    """

    framework: str
    generation: str
    conventions: Conventions
    names: TensorNames
    unused: tuple[tuple[str, str], ...] = ()
    assumed: tuple[Assumption, ...] = ()
    statements: Statements = field(default_factory=Statements)
    categories: tuple[Category, ...] | None = None
    has_background_row: bool = False
    cell_anchors: tuple[Tensor, ...] = ()

    def reason_to_drop(self, name: str, tensor: Tensor) -> str | None:
        """Return why a tensor of the file is not used, or None if the format gives no reason."""
        if not tensor.dim():
            return "a single number, as counters and metrics are"
        return next((reason for pattern, reason in (_COUNTERS, *self.unused) if re.fullmatch(pattern, name)), None)
