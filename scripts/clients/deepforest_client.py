"""DeepForest's checkpoints in, and a lightened DeepForest model out and home again. Run it where DeepForest and this package are installed.

A COCO file is not downloaded: a stand-in with random heads over random norms takes its place, so that epsilon, thresholds and names
all decide the boxes.
"""

import contextlib
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision
from deepforest import main as deepforest_main
from deepforest.models.retinanet import RetinaNetHub
from torchvision.models.detection import retinanet

import lw_retinanet as lw
from lw_retinanet.data.sample import draw_scene

NEAR_PX, NEAR_SCORE = 0.05, 1e-4


def stand_in(num_classes: int) -> Any:
    """The weights of a detector with some boxes an image, whose norms have small variances that make the epsilon matter."""
    torch.manual_seed(0)
    model: Any = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes)
    for name, tensor in model.state_dict().items():
        if name.endswith("bn1.running_var") and "layer" in name:
            tensor[::16] = 2e-5
        elif name.endswith("bn1.weight") and "layer" in name:
            tensor[::16] = 0.01  # as small as the deviation, so that a wrong epsilon changes scores and does not saturate them
        elif name.endswith("bn3.weight"):
            tensor.fill_(0.2)
        elif name.startswith("head.") and tensor.dim() == 4:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
    model.head.regression_head.bbox_reg.weight.data *= 0.02
    predictor = model.head.classification_head.cls_logits
    model.eval()
    with torch.no_grad():
        model.transform.min_size = (256,)
        inputs, _ = model.transform([torch.from_numpy(draw_scene(np.random.default_rng(7), (256, 256)).image).permute(2, 0, 1) / 255])
        maps = list(model.backbone(inputs.tensors).values())
        logits = model.head.classification_head(maps)
        predictor.weight.data *= float(1 / logits.std())
        logits = model.head.classification_head(maps)
        predictor.bias.data -= logits.flatten().topk(12).values[-1] + 2.2  # 12 scores of the small image are above 0.1
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}


@contextlib.contextmanager
def no_downloads(coco: Any) -> Any:
    """torchvision's constructor finds the stand-in where it would download its file of COCO, and no ImageNet weights."""
    enum = retinanet.RetinaNet_ResNet50_FPN_Weights
    with (
        mock.patch.object(enum, "get_state_dict", return_value=coco),
        mock.patch.object(torchvision.models.ResNet50_Weights, "get_state_dict", return_value=torchvision.models.resnet50().state_dict()),
    ):
        yield


def deepforest(folder: Path, labels: dict[str, int], *, begun_from: str) -> Any:
    """A DeepForest module: begun from COCO, or from a folder of the hub."""
    weights = stand_in(len(labels))
    coco = {**weights, **{k: v for k, v in stand_in(91).items() if "cls_logits" in k}}
    args: dict[str, Any] = {"label_dict": labels, "num_classes": len(labels), "model": {"name": None}}
    with no_downloads(coco), contextlib.redirect_stdout(io.StringIO()):
        if begun_from == "hub":
            hub = RetinaNetHub(num_classes=len(labels), label_dict=labels, nms_thresh=0.05, score_thresh=0.1)
            hub.load_state_dict(weights)
            hub.save_pretrained(folder / "hub")
            args = {"model": {"name": str(folder / "hub")}}
        module = deepforest_main.deepforest(config_args=args)
        if begun_from != "hub":
            module.model.load_state_dict(weights)
    module.eval()
    return module


def answers(module: torch.nn.Module, images: list[Any]) -> list[dict[str, Any]]:
    """Boxes of DeepForest's own network."""
    with torch.no_grad():
        return [module([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0] for image in images]


def far(theirs: dict[str, Any], ours: Any) -> tuple[float, float]:
    """Largest difference of boxes and scores; infinite if the numbers of boxes or the labels differ."""
    if len(theirs["scores"]) != len(ours) or theirs["labels"].tolist() != ours.labels.tolist():
        return float("inf"), float("inf")
    boxes = np.abs(theirs["boxes"].numpy() - ours.boxes).max(initial=0)
    return float(boxes), float(np.abs(theirs["scores"].numpy() - ours.scores).max(initial=0))


def main() -> None:
    """Print a line for each way in and home."""
    warnings.filterwarnings("ignore")
    rng = np.random.default_rng(0)
    images = [draw_scene(rng, (240, 320)).image for _ in range(2)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for begun_from in ("COCO", "hub"):
            module = deepforest(folder, {"Tree": 0}, begun_from=begun_from.lower())
            theirs = answers(module.model, images)
            module.trainer.strategy.connect(module)
            module.save_model(folder / f"{begun_from}.pl")
            sources = [folder / f"{begun_from}.pl", *([folder / "hub"] if begun_from == "hub" else [])]
            for source in sources:
                converted = lw.convert(source, folder / "m.safetensors")
                ours = lw.load(folder / "m.safetensors").predict_arrays(images)
                apart = [far(one, two) for one, two in zip(theirs, ours, strict=True)]
                counts = f"{[len(one['scores']) for one in theirs]} boxes, converted {[len(one) for one in ours]}"
                near = "same" if max(px for px, _ in apart) <= NEAR_PX and max(score for _, score in apart) <= NEAR_SCORE else "DIFFERENT"
                names = [category.name for category in converted.loaded.record.categories]
                print(f"{source.name} begun from {begun_from}: {counts}, {names}, largest differences {max(apart)}: {near}")
        module.model = lw.lighten(module.model, "lw-v3")
        before = answers(module.model.eval(), images[:1])
        module.save_model(folder / "light.pl")
        again = deepforest(folder, {"Tree": 0}, begun_from="hub")
        again.model = lw.lighten(again.model, "lw-v3")
        again.load_state_dict(torch.load(folder / "light.pl", weights_only=False)["state_dict"])  # strict
        after = answers(again.model.eval(), images[:1])
        is_same = all(torch.equal(before[0][key], after[0][key]) for key in before[0])
        counts = f"{len(before[0]['scores'])} then {len(after[0]['scores'])} boxes"
        print(f"lightened, save_model, load: {counts}: {'same' if is_same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
