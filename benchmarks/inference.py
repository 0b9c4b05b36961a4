"""JPEG to boxes, batch 1: ours against torchvision's RetinaNet (ResNet-50) with the same weights.

    OMP_NUM_THREADS=2 python benchmarks/inference.py [--state tv.pth --classes 7 --stride-in 1x1] [--images FOLDER] [--size 800]
        [--head lw-v3] [--precision fp32|bf16|auto] [--compile] [--rounds 30] [--json]

Weights are a state dict of torchvision's RetinaNet with P6 from C5 and a frozen backbone norm; without one they are random, with the class
bias moved until 1000 (anchor, class) pairs of the first picture have a score above 0.05, since without candidates post-processing costs
nothing. Pictures are the first eight JPEG files of a folder, or made up. All are cut to squares, so that the input is SIZE x SIZE.

Parity comes first, in fp32 and with the whole head, on every picture: the same labels, scores within 1e-5, boxes within 0.05 px. If it
fails, nothing is timed and the exit code is 1. Then all take turns, a picture a round: torchvision as shipped, torchvision in channels
last (and under autocast, for bf16), and ours, with --head its light copy.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchvision.io import decode_jpeg
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet

from lw_retinanet.data.images import decode
from lw_retinanet.detect.detector import Detector
from lw_retinanet.lighten.surgery import lighten_copy
from lw_retinanet.models.postprocess import detect
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.models.variants import plan_of
from lw_retinanet.weights.torchvision_model import from_torchvision
from postprocess import compare
from rounds import machine, ratio, summary, take_turns
from torchvision_answers import trained_v1

STAGES = ("decode", "preprocess", "network", "post-processing")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--stride-in", choices=["1x1", "3x3"], default="3x3")
    parser.add_argument("--images", type=Path, help="folder with JPEG files")
    parser.add_argument("--size", type=int, default=800)
    parser.add_argument("--head", default="retinanet", help="preset of a light head, made from the full one")
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    a = parser.parse_args()
    before = machine()
    torch.manual_seed(0)
    pictures = from_folder(a.images, a.size) if a.images else made_up(a.size)
    theirs = torchvisions(a.classes, a.size, a.stride_in, a.state, decode(pictures[0]))
    loaded = from_torchvision(theirs)
    model, categories = loaded.model, loaded.record.categories
    plain = Detector(model, categories)
    parity, candidates = gate(theirs, plain, pictures)
    result: dict[str, Any] = {
        "what": "JPEG bytes to boxes, batch 1",
        "machine": before,
        "input_hw": plain.prepare([decode(pictures[0])]).size_hw,
        "weights": str(a.state) if a.state else "random, class bias for 1000 candidates",
        "candidates_over_0.05": candidates,
        "parity_fp32": parity,
    }
    if parity["wrong"]:
        print(json.dumps(result, indent=None if a.json else 2))
        print("error: the two do not agree, so nothing was timed", file=sys.stderr)
        return 1
    ours = Detector(timed_model(model, a.head), categories, precision=a.precision, compile=a.compile)
    best = torchvisions(a.classes, a.size, a.stride_in, a.state, decode(pictures[0])).to(memory_format=torch.channels_last)
    best.load_state_dict(theirs.state_dict())
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
    turn = dict.fromkeys(("shipped", "best", "ours"), 0)

    def next_picture(name: str) -> bytes:
        turn[name] += 1
        return pictures[turn[name] % len(pictures)]

    def shipped() -> object:
        return answer(theirs, next_picture("shipped"))

    def best_effort() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=ours.chosen_precision == "bf16"):
            return answer(best, next_picture("best"))

    def all_stages() -> None:
        for stage, seconds in zip(STAGES, staged(ours, next_picture("ours")), strict=True):
            stages[stage].append(seconds)

    with torch.inference_mode():
        all_stages()  # chooses the precision, which the second competitor shares
        calls: dict[str, Callable[[], object]] = {
            "torchvision": shipped,
            "torchvision_channels_last": best_effort,
            "ours": all_stages,
        }
        times = take_turns(calls, rounds=a.rounds)
    result |= {"ours_is": {"head": a.head, "precision": ours.chosen_precision, "compiled": a.compile}, "rounds": a.rounds}
    result |= {name: summary(seconds) for name, seconds in times.items()}
    result["ours_by_stage"] = {stage: summary(seconds[-a.rounds :]) for stage, seconds in stages.items()}
    result["torchvision_over_ours"] = ratio(times["torchvision"], times["ours"])
    result["torchvision_channels_last_over_ours"] = ratio(times["torchvision_channels_last"], times["ours"])
    print(json.dumps(result, indent=None if a.json else 2))
    return 0


def from_folder(folder: Path, size: int) -> list[bytes]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))[:8]
    if not files:
        raise SystemExit(f"{folder} holds no JPEG files")
    return [jpeg(decode(file), size) for file in files]


def made_up(size: int) -> list[bytes]:
    """Smooth blotches: noise alone would make JPEG decoding dear."""
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8) for _ in range(4)]
    return [jpeg(np.asarray(Image.fromarray(one).resize((size, size)).filter(ImageFilter.GaussianBlur(1))), size) for one in noise]


def jpeg(picture: NDArray[np.uint8], size: int) -> bytes:
    """A square from the upper left corner, of 4/5 of the input's side: pictures are enlarged, as 640 pixels are to 800."""
    side = min(picture.shape[:2])
    stream = io.BytesIO()
    Image.fromarray(picture[:side, :side]).resize((4 * size // 5,) * 2).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def torchvisions(classes: int, size: int, stride_in: str, state: Path | None, picture: NDArray[np.uint8]) -> nn.Module:
    if state is not None:
        return trained_v1(classes, size, stride_in, torch.load(state, weights_only=True)).eval()
    torch.manual_seed(0)
    model = trained_v1(classes, size, stride_in, None).eval()
    head = model.head.classification_head
    for conv in (module for module in model.head.modules() if isinstance(module, nn.Conv2d)):
        nn.init.normal_(conv.weight, std=(2 / conv.weight[0].numel()) ** 0.5)
    nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.001)
    logits: list[Tensor] = []
    hook = head.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
    with torch.inference_mode():
        model([as_float(picture)])
    hook.remove()
    # Spread as trained ones are, and 1000 of them above the logit of 0.05.
    spread = 1.5 / float(logits[0].std())
    thousandth = float(logits[0].flatten().topk(1000).values[-1]) - float(head.cls_logits.bias[0].detach())
    shift = float(np.log(0.05 / 0.95)) - thousandth * spread
    with torch.no_grad():
        head.cls_logits.weight.mul_(spread)
        head.cls_logits.bias.fill_(shift)
    return model


def timed_model(model: RetinaNet, head: str) -> RetinaNet:
    plan = plan_of(head)
    return lighten_copy(model, plan)[0] if plan.cls or plan.bbox else model


def gate(theirs: TorchvisionRetinaNet, ours: Detector, pictures: list[bytes]) -> tuple[dict[str, Any], list[int]]:
    total: dict[str, Any] = {"detections": 0, "wrong": 0, "largest_box_difference_px": 0.0, "largest_score_difference": 0.0}
    candidates = []
    for data in pictures:
        picture = decode(data)
        with torch.inference_mode():
            answers = theirs([as_float(picture)])
            candidates.append(int((ours.network(ours.prepare([picture]).images).logits.sigmoid() > 0.05).sum()))
        found = ours.predict_arrays([picture])[0]
        columns = {name: torch.from_numpy(getattr(found, name))[None] for name in ("boxes", "scores", "labels")}
        one = compare(answers, SimpleNamespace(counts=[len(found)], **columns))
        total["detections"] += one["detections"]
        total["wrong"] += one["wrong"]
        for key in ("largest_box_difference_px", "largest_score_difference"):
            total[key] = max(total[key], one[key])
    return total, candidates


def answer(model: nn.Module, data: bytes) -> object:
    return model([decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).float() / 255])


def staged(detector: Detector, data: bytes) -> list[float]:
    """Seconds of each of ``STAGES``."""
    marks = [time.perf_counter()]
    picture = decode(data)
    marks.append(time.perf_counter())
    inputs = detector.prepare([picture])
    marks.append(time.perf_counter())
    predictions = detector.network(inputs.images)
    marks.append(time.perf_counter())
    detect(
        predictions,
        size_hw=inputs.size_hw,
        sizes_hw=inputs.sizes_hw,
        conventions=detector.conventions,
        pictures_hw=inputs.pictures_hw,
    )
    marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


def as_float(picture: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


if __name__ == "__main__":
    sys.exit(main())
