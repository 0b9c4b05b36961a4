"""The conventions of the frameworks that RetinaNet weights come from, one value each.

They are of the frameworks' published COCO models as their own inference code runs them; weights keep their own channel order, so
nothing has to be permuted. Values that a converted file says otherwise (another test size, other thresholds) replace these.
"""

from lw_retinanet.conventions import AnchorRule, BoxRule, Conventions, InputRule, OutputRule

_IMAGENET_BGR = (103.53, 116.28, 123.675)

# Version 0.13 and later. The published v1 weights are used with batch norms whose epsilon is overwritten by 0; a network that somebody
# trained from this class may have 1e-5, which the weights do not tell.
TORCHVISION_V1 = Conventions(
    norm_eps=0.0,
    p6_source="P5",
    anchors=AnchorRule(rounding="torchvision", stride_rule="padded_over_feature"),
    input=InputRule(resize="short_side", size=800, rounding="floor", antialias=False, resample_as="float32"),
    output=OutputRule(max_detections=300),
)

TORCHVISION_V2 = TORCHVISION_V1.model_copy(update={"norm_eps": 1e-5, "p6_source": "C5"})

# Boxes are clipped after the change to picture pixels, which is the same as clipping before it.
DETECTRON2 = Conventions(
    stride_in="1x1",
    anchors=AnchorRule(order="scale_major"),
    input=InputRule(resize="short_side", size=800, channel_order="bgr", scale=1.0, mean=_IMAGENET_BGR, std=(1.0, 1.0, 1.0)),
    output=OutputRule(clip="after_nms", drop_empty=True),
)

# Version 3. Boxes are clipped in input pixels and scaled then, which is the same as clipping them in the picture.
MMDET = Conventions(
    p7_relu=False,
    boxes=BoxRule(clamp="both"),
    input=InputRule(resize="short_side", size=800, antialias=False, scale=1.0, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
    output=OutputRule(frame="picture", drop_empty=True),
)

MMDET_CAFFE = MMDET.model_copy(
    update={
        "stride_in": "1x1",
        "input": MMDET.input.model_copy(update={"channel_order": "bgr", "mean": _IMAGENET_BGR, "std": (1.0, 1.0, 1.0)}),
    }
)

# A cell's anchors lie around the middle of the cell although their widths count both border pixels: as decoded, their centres are half a
# pixel further. Its stride is the padded width over the map's, the fixed one for inputs padded to 128.
ODTK = Conventions(
    anchors=AnchorRule(aspect_ratios=(1.0, 2.0, 0.5), order="scale_major", centre=0.5),
    boxes=BoxRule(legacy_plus_one=True, clamp="none"),
    input=InputRule(resize="short_side", size=800, rounding="floor", pad_multiple=128),
    output=OutputRule(clip_to="padded_minus_one", scale_back="uniform"),
)

# The original Detectron. Norms are factors and offsets alone, so an epsilon of 0 keeps them exact; P6 comes from C5, with ReLU before P7.
# The centre of a cell's inclusive anchors, (stride - 1) / 2, is half a stride where the last pixel counts whole.
CAFFE2 = Conventions(
    stride_in="1x1",
    norm_eps=0.0,
    anchors=AnchorRule(aspect_ratios=(1.0, 2.0, 0.5), order="scale_major", rounding="detectron", centre=0.5, inclusive=True),
    boxes=BoxRule(legacy_plus_one=True),
    input=InputRule(
        resize="short_side",
        size=800,
        rounding="detectron",
        antialias=False,
        resample_as="float32",
        pad_multiple=128,
        channel_order="bgr",
        scale=1.0,
        mean=(102.9801, 115.9465, 122.7717),
        std=(1.0, 1.0, 1.0),
    ),
    output=OutputRule(last_level_score_threshold=0.0, clip_to="picture_minus_one", frame="picture", scale_back="uniform"),
)

ORIGINS = {
    "torchvision_v1": TORCHVISION_V1,
    "torchvision_v2": TORCHVISION_V2,
    "detectron2": DETECTRON2,
    "mmdet": MMDET,
    "mmdet_caffe": MMDET_CAFFE,
    "odtk": ODTK,
    "caffe2": CAFFE2,
}
