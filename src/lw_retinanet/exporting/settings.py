"""What an export is asked for, checked against what its target can do."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lw_retinanet.detection.detector import HeadChoice
from lw_retinanet.errors import ConfigError, InputError, nearest
from lw_retinanet.exporting.gate import MAX_DROP
from lw_retinanet.exporting.manifest import ExportPrecision
from lw_retinanet.exporting.target import ExportedRuntime, Feature
from lw_retinanet.exporting.targets import target_class, target_classes


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is asked for. The fields are the parameters of :func:`lw_retinanet.export`, but ``max_drop`` is AP in 0..1.

    Raises:
        ConfigError: For an unknown format, precision or head.
        InputError: For settings that do not go together.
    """

    format: str
    precision: ExportPrecision = "fp32"
    end_to_end: bool = False
    half_weights: bool = False
    head: HeadChoice = "light"
    calibrate: str | Path | None = None
    calibration_images: int = 300
    validate: str | Path | None = None
    gate_images: int | None = None
    max_drop: float = MAX_DROP
    allow_drop: bool = False
    symmetric: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("precision", self.precision, get_args(ExportPrecision)), ("head", self.head, get_args(HeadChoice))):
            if value not in known:
                raise ConfigError(f"{name} {value}: expected {', '.join(known)}{nearest(value, known)}")
        given = {
            "calibrate": self.calibrate is not None,
            "validate": self.validate is not None,
            "gate_images": self.gate_images is not None,
            "allow_drop": self.allow_drop,
            "symmetric": self.symmetric,
        }
        if self.precision != "int8" and any(given.values()):
            named = ", ".join(name for name, is_given in given.items() if is_given)
            raise InputError(f"{named}: for precision int8 only, and this is {self.precision}; choose int8 or leave it out")
        wanted: dict[Feature, bool] = {
            "bf16": self.precision == "bf16",
            "int8": self.precision == "int8",
            "end_to_end": self.end_to_end,
            "half_weights": self.half_weights,
            "symmetric": self.symmetric,
        }
        for feature in (feature for feature, is_wanted in wanted.items() if is_wanted and feature not in self.target.features):
            able = [name for name, target in target_classes().items() if feature in target.features]
            raise InputError(
                f"format {self.format} has no {feature}; leave it out, or take one of the formats that have it: {', '.join(able)}"
            )
        if self.precision == "int8" and self.half_weights:
            raise InputError("half_weights rounds what int8 and its gate leave alone, and nothing measures that; leave it out")
        if self.precision == "int8" and self.calibrate is None:
            raise InputError("precision int8 measures ranges on images like those to come; name a data set or a folder with calibrate")

    @property
    def target(self) -> type[ExportedRuntime]:
        """The class that writes the format."""
        return target_class(self.format)

    @property
    def gives_boxes(self) -> bool:
        """Whether the network is written with NMS inside."""
        return self.end_to_end or self.target.always_gives_boxes
