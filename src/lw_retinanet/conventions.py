"""The choices in which RetinaNet implementations differ, as one record that travels with the weights.

A model file stores this record, so that converted weights give the same detections as in the framework that they come from. The
defaults are this project's own choices.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LEVELS = ("P3", "P4", "P5", "P6", "P7")
STRIDES = (8, 16, 32, 64, 128)
# Limits far beyond every detector; outside of them a file only costs memory, or the network's answers are noise.
Ratio = Annotated[float, Field(ge=1e-3, le=1e3)]
Divisor = Annotated[float, Field(ge=1e-4, le=1e6)]
PixelValue = Annotated[float, Field(ge=-1e6, le=1e6)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AnchorRule(_Record):
    """Where the anchors are, and their order in the head's channels.

    Args:
        base_size: Side of the smallest square anchor of a level, in strides.
        octave_scales: Scales of a level, relative to ``base_size``.
        aspect_ratios: Heights divided by widths.
        order: ``ratio_major`` gives an anchor the number ``ratio * scales + scale`` (torchvision, MMDetection), ``scale_major`` the number
            ``scale * ratios + ratio`` (Detectron2).
        rounding: ``exact`` keeps floats; ``torchvision`` truncates sizes and rounds corners; ``detectron`` rounds the sides of anchors of
            one stride and scales them after that (Caffe2 Detectron).
        centre: Position of the anchors' centre inside a cell, in strides; 0 is the cell's upper left corner.
        inclusive: The lower right corner is the anchor's last pixel, ``x2 = x1 + width - 1`` (Caffe2 Detectron).
        stride_rule: ``fixed`` means strides of 8 to 128, ``padded_over_feature`` the padded size divided by the map's size (torchvision).
    """

    base_size: Ratio = 4.0
    octave_scales: tuple[Ratio, ...] = Field(default=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)), min_length=1, max_length=64)
    aspect_ratios: tuple[Ratio, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1, max_length=64)
    order: Literal["ratio_major", "scale_major"] = "ratio_major"
    rounding: Literal["exact", "torchvision", "detectron"] = "exact"
    centre: float = Field(default=0.0, ge=0, le=1)
    inclusive: bool = False
    stride_rule: Literal["fixed", "padded_over_feature"] = "fixed"

    @property
    def num_anchors(self) -> int:
        """Number of anchors in each cell."""
        return len(self.octave_scales) * len(self.aspect_ratios)


class BoxRule(_Record):
    """How deltas become boxes.

    Args:
        legacy_plus_one: In the original framework x2 and y2 are the box's last pixel, so widths are ``x2 - x1 + 1`` (Caffe2 Detectron,
            odtk). Boxes that enter or leave this package always have x2 and y2 at the end of the last pixel.
        clamp: ``max`` limits dw and dh to at most ``log(1000 / 16)``, ``both`` also to at least minus that, ``none`` not at all.
    """

    legacy_plus_one: bool = False
    clamp: Literal["max", "both", "none"] = "max"


class InputRule(_Record):
    """How an image becomes the network's input.

    Args:
        resize: ``long_side`` scales the longer side to ``size``; ``short_side`` scales the shorter side to ``size`` unless the longer one
            would exceed ``max_size``.
        size: Side in pixels.
        max_size: Largest longer side in pixels, for ``short_side`` only.
        rounding: How scaled sides become whole numbers: ``round`` (halves up); ``floor``; or ``detectron``, which rounds halves to the
            even number, applies ``max_size`` to the rounded side, and samples pixels at the exact scale instead of the ratio of the sides.
        antialias: Apply a low-pass filter when shrinking (Pillow and Detectron2 do, torchvision's detectors do not).
        resample_as: ``uint8`` rounds resized pixels to whole levels, ``float32`` does not (torchvision, Caffe2 Detectron).
        pad_multiple: Pixels are added at the right and the bottom until height and width are multiples of this.
        channel_order: ``rgb`` or ``bgr``.
        scale: Pixel values 0..255 are divided by this.
        mean: Subtracted from the scaled values, one number a channel, in ``channel_order``.
        std: The result is divided by this, one number a channel.
    """

    resize: Literal["long_side", "short_side"] = "long_side"
    size: int = Field(default=640, ge=1, le=8192)
    max_size: int = Field(default=1333, ge=1, le=8192)
    rounding: Literal["round", "floor", "detectron"] = "round"
    antialias: bool = True
    resample_as: Literal["uint8", "float32"] = "uint8"
    pad_multiple: int = Field(default=32, ge=1, le=1024)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    scale: Divisor = 255.0
    mean: tuple[PixelValue, PixelValue, PixelValue] = (0.485, 0.456, 0.406)
    std: tuple[Divisor, Divisor, Divisor] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _require_detectrons_sampling(self) -> Self:
        if self.rounding == "detectron" and (self.antialias or self.resample_as != "float32"):
            raise ValueError(
                "rounding=detectron resizes without a filter and without rounding pixels; set antialias=False, resample_as=float32"
            )
        return self


class OutputRule(_Record):
    """How predictions become detections.

    Args:
        score_threshold: A detection's score must be greater.
        last_level_score_threshold: Threshold for P7 if it is another one (Caffe2 Detectron: 0).
        candidates_per_level: How many of the best (anchor, class) pairs of a level are considered by NMS.
        nms_iou: If two boxes of one class overlap by more than this IoU, the one with the lower score is removed.
        class_agnostic: NMS also removes boxes that overlap a better one of another class.
        max_detections: Largest number of detections of one image.
        clip: Whether boxes are clipped before or after NMS.
        clip_to: Clip to the image (``picture``), to the image's last pixel (``picture_minus_one``) or to the last pixel of the padded input
            (``padded_minus_one``).
        frame: Whether boxes are clipped and suppressed in pixels of the network's ``input`` or of the original image (``picture``).
        scale_back: From input pixels to image pixels by the ratio of the sides (``per_axis``), or by the scale of resizing (``uniform``).
        drop_empty: Remove boxes that clipping leaves without width or height (Detectron2, MMDetection).
    """

    score_threshold: float = Field(default=0.05, ge=0, lt=1)
    last_level_score_threshold: float | None = Field(default=None, ge=0, lt=1)
    candidates_per_level: Count = 1000
    nms_iou: float = Field(default=0.5, gt=0, le=1)
    class_agnostic: bool = False
    max_detections: Count = 100
    clip: Literal["before_nms", "after_nms"] = "before_nms"
    clip_to: Literal["picture", "picture_minus_one", "padded_minus_one"] = "picture"
    frame: Literal["input", "picture"] = "input"
    scale_back: Literal["per_axis", "uniform"] = "per_axis"
    drop_empty: bool = False

    @model_validator(mode="after")
    def _require_a_frame_to_clip_in(self) -> Self:
        if self.frame == "picture" and self.clip_to == "padded_minus_one":
            raise ValueError("frame=picture has no padding to clip to; set frame=input or clip_to=picture_minus_one")
        return self


class Conventions(_Record):
    """All choices of one implementation.

    Args:
        stride_in: Which convolution of a ResNet bottleneck has the stride: the ``3x3`` (PyTorch) or the first ``1x1`` (Caffe, MSRA,
            Detectron2).
        norm_eps: Epsilon of the backbone's frozen batch norm (torchvision's v1 weights: 0).
        p6_source: Whether P6 is a convolution of ``C5`` or of ``P5``.
        p7_relu: Apply a ReLU to P6 before the convolution that makes P7.
        anchors: The anchors.
        boxes: How deltas become boxes.
        input: How images become the network's input.
        output: How predictions become detections.
    """

    stride_in: Literal["3x3", "1x1"] = "3x3"
    norm_eps: float = Field(default=1e-5, ge=0, le=1)
    p6_source: Literal["C5", "P5"] = "C5"
    p7_relu: bool = True
    anchors: AnchorRule = AnchorRule()
    boxes: BoxRule = BoxRule()
    input: InputRule = InputRule()
    output: OutputRule = OutputRule()
