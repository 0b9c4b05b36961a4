"""Convert the weights of another program into a model file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lw_retinanet.data.image_files import find_images
from lw_retinanet.data.images import decode
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import OutputError
from lw_retinanet.weights.foreign.comparison import Arrays, Image, compare_with_framework
from lw_retinanet.weights.foreign.convention_overrides import parse_overrides
from lw_retinanet.weights.foreign.conversion import ConvertedModel
from lw_retinanet.weights.foreign.convert import convert
from lw_retinanet.weights.model_file import LoadedModel, save_model


def run_conversion(
    weights: str | Path,
    out: Path | None = None,
    *,
    origin: str = "auto",
    classes: str | Path | Sequence[str] | Sequence[Category] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    check: Sequence[str | Path] = (),
    half: bool = False,
) -> ConvertedModel:
    """Convert, compare with the origin's own library where it is installed, and write the model file.

    The parameters are those of :func:`lw_retinanet.convert`; ``overrides`` may also be texts such as ``input.size=416``.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        overrides = parse_overrides(overrides)
    if out is not None:
        _require_new_model_file(out, weights)
    files = find_images([str(source) for source in check]) if check else []
    conversion = convert(weights, origin=origin, classes=classes, overrides=overrides)
    conversion = compare_with_framework(conversion, _answers, [decode(file) for file in files])
    if out is not None:
        save_model(out, conversion.loaded.model, conversion.loaded.record, half=half)
    return conversion


def _require_new_model_file(out: Path, weights: str | Path) -> None:
    if out.suffix != ".safetensors" or out.is_dir():
        raise OutputError(f"{out}: a model file ends in .safetensors; choose such a name for the output")
    if out.exists() and Path(weights).exists() and out.samefile(weights):
        raise OutputError(f"{out} is the file to convert itself; choose another name for the output")


def _answers(loaded: LoadedModel, images: Sequence[Image]) -> Sequence[Arrays]:
    """What every user of the model will get, for the comparison with the origin's library."""
    results = Detector.of_model(loaded.model, loaded.record.categories).predict_arrays(images)
    return [(result.boxes, result.scores, result.labels) for result in results]
