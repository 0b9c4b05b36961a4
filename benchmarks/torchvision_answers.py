"""Does a converted model answer as torchvision does? Boxes on real photographs, and AP through both, from one state dict.

    python benchmarks/torchvision_answers.py DATA --state tv.pth --size 416 --stride-in 1x1 [--photographs 64] [--out answers.json]
    python benchmarks/torchvision_answers.py DATA --v2 [--state tv.pth]

The first form takes a state dict of torchvision's RetinaNet with P6 from C5 and a frozen backbone norm, trained on DATA's classes in the
order of their ids. The second checks ``retinanet_resnet50_fpn_v2``: random heads over the trunk of the state dict, if one is given, with
class weights scaled until hundreds of scores pass the threshold. Both go through ``lw-retinanet convert`` and ``lw.load`` alone.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

import lw_retinanet as lw
from lw_retinanet.cli.main import _run
from lw_retinanet.data.image_sizes import with_sizes
from lw_retinanet.data.images import decode
from lw_retinanet.data.source import open_data
from lw_retinanet.evaluate.coco_metrics import evaluate
from lw_retinanet.evaluate.detections import DetectionTable, concatenate

BOX, SCORE = 0.05, 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--stride-in", choices=["1x1", "3x3"], default="3x3")
    parser.add_argument("--v2", action="store_true")
    parser.add_argument("--photographs", type=int, default=64)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.manual_seed(0)
    records = with_sizes(open_data(a.data, split="val"))
    num_classes = len(records.categories)
    state = torch.load(a.state, weights_only=True) if a.state else {}
    settings = [f"input.size={a.size}", f"input.max_size={a.size}"]
    if a.v2:
        model = informative_v2(num_classes, a.size, state)
    else:
        model = trained_v1(num_classes, a.size, a.stride_in, state)
        settings += [f"stride_in={a.stride_in}", "norm_eps=1e-5"]
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        foreign, ours = Path(folder) / "foreign.pth", Path(folder) / "ours.safetensors"
        torch.save(model.state_dict(), foreign)
        arguments = ["convert", str(foreign), "--out", str(ours), "--classes", str(a.data)]
        code = _run([*arguments, *(part for setting in settings for part in ("--set", setting))], is_debug=True)
        assert code == 0
        detector = lw.load(ours, device="cpu")
    answers: dict[str, Any] = {"version": lw.__version__, "torch": torch.__version__, "model": "v2" if a.v2 else "v1", "size": a.size}
    tables: dict[str, list[DetectionTable]] = {"torchvision": [], "ours": []}
    worst_box = worst_score = 0.0
    compared = unmatched = 0
    started = time.monotonic()
    for image in range(records.num_images):
        picture = decode(records.path(image))
        with torch.inference_mode():
            theirs = model([torch.from_numpy(picture).permute(2, 0, 1).float() / 255])[0]
        result = detector.predict_arrays([picture])[0]
        tables["torchvision"].append(table(image, theirs["boxes"], theirs["scores"], theirs["labels"]))
        tables["ours"].append(DetectionTable.from_image(image, result.boxes, result.scores, result.labels.astype(np.int32)))
        if image < a.photographs:
            box, score, missed = differences(theirs, result)
            worst_box, worst_score, unmatched = max(worst_box, box), max(worst_score, score), unmatched + missed
            compared += len(theirs["labels"])
    answers |= {
        "photographs": min(a.photographs, records.num_images),
        "detections": compared,
        "unmatched": unmatched,
        "largest_box_difference_px": worst_box,
        "largest_score_difference": worst_score,
        "images": records.num_images,
        "AP_torchvision": evaluate(records, concatenate(tables["torchvision"])).AP,
        "AP_ours": evaluate(records, concatenate(tables["ours"])).AP,
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(answers, indent=2))
    if a.out:
        a.out.write_text(json.dumps(answers, indent=2) + "\n")


def trained_v1(num_classes: int, size: int, stride_in: str, state: dict[str, Tensor]) -> nn.Module:
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    if stride_in == "1x1":
        for stage in (body.layer2, body.layer3, body.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    backbone = _resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(2048, 256))
    model = RetinaNet(backbone, num_classes, min_size=size, max_size=size)
    model.load_state_dict(state)
    return model


def informative_v2(num_classes: int, size: int, state: dict[str, Tensor]) -> nn.Module:
    model = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=num_classes, min_size=size, max_size=size)
    trunk = {key: value for key, value in state.items() if key.startswith("backbone.")}
    _missing, unexpected = model.load_state_dict(trunk, strict=False)
    assert not unexpected
    head = model.head.classification_head
    nn.init.normal_(head.cls_logits.weight, std=0.06)
    nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.02)
    return model


def table(image: int, boxes: Tensor, scores: Tensor, labels: Tensor) -> DetectionTable:
    return DetectionTable.from_image(image, boxes.numpy(), scores.numpy(), labels.numpy().astype(np.int32))


def differences(theirs: dict[str, Tensor], result: lw.Result) -> tuple[float, float, int]:
    """Largest difference of boxes and scores of detections that belong together, and the number of those without a partner.

    Detections whose scores are equal to ``SCORE`` may come in any order: each takes the best overlapping one of its label and score.
    """
    boxes, scores, labels = torch.from_numpy(result.boxes), torch.from_numpy(result.scores), torch.from_numpy(result.labels)
    taken = torch.zeros(len(labels), dtype=torch.bool)
    box = score = 0.0
    missed = 0
    overlaps = box_iou(theirs["boxes"], boxes) if len(labels) else torch.zeros(len(theirs["labels"]), 0)
    for row in range(len(theirs["labels"])):
        fits = (labels == theirs["labels"][row]) & ~taken & ((scores - theirs["scores"][row]).abs() <= SCORE)
        if not fits.any():
            missed += 1
            continue
        partner = int((overlaps[row] * fits).argmax())
        taken[partner] = True
        box = max(box, float((boxes[partner] - theirs["boxes"][row]).abs().max()))
        score = max(score, float((scores[partner] - theirs["scores"][row]).abs()))
    return box, score, missed + int((~taken).sum())


if __name__ == "__main__":
    main()
