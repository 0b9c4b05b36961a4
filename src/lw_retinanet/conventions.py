"""The choices in which RetinaNet implementations differ, as one record that travels with the weights.

A model file stores it, so a detector answers as the system answers that its weights come from. Every field is honoured by
``models``, ``data.preprocess`` and ``models.postprocess``; the defaults are this project's own.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

LEVELS = ("P3", "P4", "P5", "P6", "P7")
STRIDES = (8, 16, 32, 64, 128)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnchorRule(_Record):
    """Where anchors sit and in which order the head names them.

    Args:
        base_size: side of the smallest square anchor of a level, in strides.
        octave_scales: scales of a level, relative to ``base_size``.
        aspect_ratios: heights over widths.
        order: ``ratio_major`` numbers an anchor ``ratio * scales + scale`` (torchvision, MMDetection),
            ``scale_major`` the other way (Detectron2).
        rounding: ``exact`` floats; ``torchvision``'s truncated sizes and rounded corners; ``detectron``'s rounded sides of the anchors of
            one stride, scaled after that (Caffe2 Detectron).
        centre: position of the anchors' centre inside a cell, in strides (0 is the cell's upper left corner).
        inclusive: the lower right corner is the anchor's last pixel, ``x2 = x1 + width - 1`` (Caffe2 Detectron).
        stride_rule: the ``fixed`` 8..128, or torchvision's ``padded size // feature size``.
    """

    base_size: PositiveFloat = 4.0
    octave_scales: tuple[PositiveFloat, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    aspect_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    order: Literal["ratio_major", "scale_major"] = "ratio_major"
    rounding: Literal["exact", "torchvision", "detectron"] = "exact"
    centre: float = Field(default=0.0, ge=0, le=1)
    inclusive: bool = False
    stride_rule: Literal["fixed", "padded_over_feature"] = "fixed"

    @property
    def num_anchors(self) -> int:
        """Anchors a cell."""
        return len(self.octave_scales) * len(self.aspect_ratios)


class BoxRule(_Record):
    """How deltas become boxes.

    Args:
        legacy_plus_one: the origin's boxes end with their last pixel, so widths are ``x2 - x1 + 1`` (Caffe2 Detectron, odtk). Boxes
            that enter or leave this package end where the last pixel ends, whatever this says.
        clamp: limit dw and dh by ``log(1000 / 16)`` from above only (``max``), on ``both`` sides, or not at all (``none``).
    """

    legacy_plus_one: bool = False
    clamp: Literal["max", "both", "none"] = "max"


class InputRule(_Record):
    """How a picture becomes the network's input.

    Args:
        resize: ``long_side`` scales the longer side to ``size``; ``short_side`` scales the shorter side to ``size`` unless the longer one
            would pass ``max_size``.
        size: pixels.
        max_size: pixels, for ``short_side`` only.
        rounding: of the scaled sides: ``round`` (halves up), ``floor``, or ``detectron``: halves to the even number, ``max_size`` holds for
            the rounded side, and pixels are sampled at the exact scale instead of the sides' ratio (Caffe2 Detectron).
        antialias: low-pass filter when shrinking (Pillow and Detectron2 do, torchvision's detectors do not).
        resample_as: ``uint8`` rounds resized pixels to whole levels, ``float32`` does not (torchvision, Caffe2 Detectron).
        pad_multiple: the padded height and width are multiples of this, pixels added at the right and the bottom.
        channel_order: ``rgb`` or ``bgr``.
        scale: pixel values 0..255 are divided by this.
        mean: per channel in ``channel_order``, subtracted after scaling.
        std: per channel, divides after that.
    """

    resize: Literal["long_side", "short_side"] = "long_side"
    size: PositiveInt = 640
    max_size: PositiveInt = 1333
    rounding: Literal["round", "floor", "detectron"] = "round"
    antialias: bool = True
    resample_as: Literal["uint8", "float32"] = "uint8"
    pad_multiple: PositiveInt = 32
    channel_order: Literal["rgb", "bgr"] = "rgb"
    scale: PositiveFloat = 255.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _samples_one_way(self) -> Self:
        if self.rounding == "detectron" and (self.antialias or self.resample_as != "float32"):
            raise ValueError("rounding=detectron samples without a filter and without rounding; set antialias=False, resample_as=float32")
        return self


class OutputRule(_Record):
    """How predictions become detections.

    Args:
        score_threshold: scores must be greater.
        last_level_score_threshold: the same for P7, where it differs (Caffe2 Detectron: 0).
        candidates_per_level: the best (anchor, class) pairs of a level that go on to NMS.
        nms_iou: of two boxes of one class that overlap more, the lower score goes.
        max_detections: kept for one image.
        clip: boxes are clipped before or after NMS.
        clip_to: the ``picture``, its last pixel (``picture_minus_one``) or the last pixel of the padded input (``padded_minus_one``).
        frame: pixels in which boxes are clipped and suppressed: of the network's ``input`` or of the original ``picture``.
        scale_back: factors from input to picture pixels: the sides' ratios (``per_axis``) or the one scale of resizing (``uniform``).
        drop_empty: a box that clipping leaves without width or height is no detection (Detectron2, MMDetection).
    """

    score_threshold: float = Field(default=0.05, ge=0, lt=1)
    last_level_score_threshold: float | None = Field(default=None, ge=0, lt=1)
    candidates_per_level: PositiveInt = 1000
    nms_iou: float = Field(default=0.5, gt=0, le=1)
    max_detections: PositiveInt = 100
    clip: Literal["before_nms", "after_nms"] = "before_nms"
    clip_to: Literal["picture", "picture_minus_one", "padded_minus_one"] = "picture"
    frame: Literal["input", "picture"] = "input"
    scale_back: Literal["per_axis", "uniform"] = "per_axis"
    drop_empty: bool = False

    @model_validator(mode="after")
    def _clips_within_its_frame(self) -> Self:
        if self.frame == "picture" and self.clip_to == "padded_minus_one":
            raise ValueError("padding has no place in the picture's pixels; set frame=input or clip_to=picture_minus_one")
        return self


class Conventions(_Record):
    """All of it.

    Args:
        stride_in: which convolution of a ResNet bottleneck strides: ``3x3`` (PyTorch) or the first ``1x1`` (Caffe, MSRA, Detectron2).
        norm_eps: epsilon of the backbone's frozen batch norm (torchvision's v1 weights: 0).
        p6_source: P6 is a convolution of ``C5`` or of ``P5``.
        p7_relu: ReLU on P6 before the convolution that makes P7.
    """

    stride_in: Literal["3x3", "1x1"] = "3x3"
    norm_eps: NonNegativeFloat = 1e-5
    p6_source: Literal["C5", "P5"] = "C5"
    p7_relu: bool = True
    anchors: AnchorRule = AnchorRule()
    boxes: BoxRule = BoxRule()
    input: InputRule = InputRule()
    output: OutputRule = OutputRule()
