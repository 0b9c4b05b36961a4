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
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

import lw_retinanet as lw
from lw_retinanet.cli.main import _run
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.image_sizes import with_sizes
from lw_retinanet.data.images import decode
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detections import DetectionTable, concatenate

BOX, SCORE = 0.05, 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--stride-in", choices=["1x1", "3x3"], default="3x3")
    parser.add_argument("--v2", action="store_true")
    parser.add_argument("--photographs", type=int, default=64)
    parser.add_argument("--only-photographs", action="store_true", help="compare boxes, leave AP out")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.manual_seed(0)
    records = with_sizes(Dataset.open(a.data).read("val"))
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
        detector, before_nms = lw.load(ours, device="cpu"), lw.load(ours, device="cpu")
    rule = detector.conventions.output.model_copy(update={"nms_iou": 1.0, "max_detections": 5000})
    before_nms = before_nms.with_conventions(detector.conventions.model_copy(update={"output": rule}))
    answers: dict[str, Any] = {"version": lw.__version__, "torch": torch.__version__, "model": "v2" if a.v2 else "v1", "size": a.size}
    tables: dict[str, list[DetectionTable]] = {"torchvision": [], "ours": []}
    worst_box = worst_score = 0.0
    compared = ties = unmatched = 0
    started = time.monotonic()
    count = min(a.photographs, records.num_images) if a.only_photographs else records.num_images
    for image in range(count):
        array = decode(records.path(image))
        with torch.inference_mode():
            theirs = model([torch.from_numpy(array).permute(2, 0, 1).float() / 255])[0]
        result = detector.predict_arrays([array])[0]
        tables["torchvision"].append(table(image, theirs["boxes"], theirs["scores"], theirs["labels"]))
        tables["ours"].append(DetectionTable.from_image(image, result.boxes, result.scores, result.labels.astype(np.int32)))
        if image < a.photographs:
            box, score, tied, missed = differences(theirs, result, before_nms.predict_arrays([array])[0])
            worst_box, worst_score = max(worst_box, box), max(worst_score, score)
            ties, unmatched = ties + tied, unmatched + missed
            compared += len(theirs["labels"])
    answers |= {
        "photographs": min(a.photographs, records.num_images),
        "detections": compared,
        "unmatched": unmatched,
        "ties_in_nms": ties,
        "largest_box_difference_px": worst_box,
        "largest_score_difference": worst_score,
        "images": count,
        "seconds": round(time.monotonic() - started, 1),
    }
    if count == records.num_images:
        answers |= {f"AP_{name}": evaluate(records, concatenate(table)).AP for name, table in tables.items()}
    print(json.dumps(answers, indent=2))
    if a.out:
        a.out.write_text(json.dumps(answers, indent=2) + "\n")


def trained_v1(num_classes: int, size: int, stride_in: str, state: dict[str, Tensor] | None) -> nn.Module:
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    if stride_in == "1x1":
        for stage in (body.layer2, body.layer3, body.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    backbone = _resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(2048, 256))
    model = RetinaNet(backbone, num_classes, min_size=size, max_size=size)
    if state is not None:
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


def differences(theirs: dict[str, Tensor], result: lw.Result, candidates: lw.Result) -> tuple[float, float, int, int]:
    """Largest difference of boxes and scores of detections that belong together, the number of ties, and of those without a match.

    Detections whose scores are equal to ``SCORE`` may come in any order: each takes the nearest one of its label and score. Of two
    overlapping candidates that tie, either may survive NMS; such a pair is recognised by its match among the candidates before NMS. It is
    counted, and does not add to the difference of boxes.
    """
    boxes, scores, labels = torch.from_numpy(result.boxes), torch.from_numpy(result.scores), torch.from_numpy(result.labels)
    taken = torch.zeros(len(labels), dtype=torch.bool)
    box = score = 0.0
    ties = missed = 0
    distances = torch.cdist(theirs["boxes"], boxes, p=float("inf"))
    for row in range(len(theirs["labels"])):
        fits = (labels == theirs["labels"][row]) & ~taken & ((scores - theirs["scores"][row]).abs() <= SCORE)
        if not fits.any():
            missed += 1
            continue
        match = int(distances[row].where(fits, float("inf")).argmin())
        taken[match] = True
        distance = float(distances[row, match])
        if distance > BOX and is_candidate(theirs, row, candidates):
            ties += 1
        else:
            box = max(box, distance)
        score = max(score, float((scores[match] - theirs["scores"][row]).abs()))
    return box, score, ties, missed + int((~taken).sum())


def is_candidate(theirs: dict[str, Tensor], row: int, candidates: lw.Result) -> bool:
    near = np.abs(candidates.boxes - theirs["boxes"][row].numpy()).max(axis=1) <= BOX
    same_score = np.abs(candidates.scores - theirs["scores"][row].item()) <= SCORE
    return bool((near & same_score & (candidates.labels == theirs["labels"][row].item())).any())


if __name__ == "__main__":
    main()
