"""Feature maps P3..P7 of a frozen trunk for the images of a dataset, computed once and kept on disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lw_retinanet.conventions import LEVELS, InputRule
from lw_retinanet.data.box_quality import usable
from lw_retinanet.data.images import decode
from lw_retinanet.data.preprocess import normalise, pad_to, padded_size, resize, resized_size, to_tensor
from lw_retinanet.data.records import Records
from lw_retinanet.errors import RunFolderError
from lw_retinanet.files import replacing, write_text
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress, tracked
from lw_retinanet.training.step import autocast
from lw_retinanet.weights.tensor_file import save_tensors

_ABOUT = "about.json"


@dataclass(frozen=True, kw_only=True)
class FeatureMaps:
    """Maps of all images of a dataset at one input size, in a folder.

    Args:
        folder: Folder with one file for each image and view.
        records: The images, with known sizes.
        rule: Size rule and padding of the network's input.
        views: ``("plain",)``, or ``("plain", "mirrored")``.
    """

    folder: Path
    records: Records
    rule: InputRule
    views: tuple[str, ...]

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """(B,) bool, the boxes to train on."""
        return usable(self.records)

    def resized_hw(self, image: int) -> tuple[int, int]:
        """Image size in the network's input."""
        height, width = self.records.sizes_hw[image].tolist()
        return resized_size((height, width), self.rule)

    def padded_hw(self, image: int) -> tuple[int, int]:
        """Padded size of an image by itself."""
        return padded_size([self.resized_hw(image)], self.rule.pad_multiple)

    def path(self, image: int, view: str) -> Path:
        """File of the maps of an image."""
        return self.folder / f"{image:06d}-{view}.safetensors"

    def load(self, images: Sequence[int], views: Sequence[str]) -> dict[str, Tensor]:
        """(N, C, H, W) maps by level, channels last in memory, of images with one padded size.

        Raises:
            RunFolderError: for a file that is missing or broken.
        """
        loaded = []
        for image, view in zip(images, views, strict=True):
            try:
                loaded.append(load_file(self.path(image, view)))
            except (OSError, SafetensorError) as error:
                raise RunFolderError(f"{self.path(image, view)} cannot be read ({error}); remove {self.folder} and run again") from None
        return {level: torch.stack([maps[level] for maps in loaded]).permute(0, 3, 1, 2) for level in LEVELS}


def compute_feature_maps(
    trunk: RetinaNet,
    records: Records,
    folder: Path,
    *,
    rule: InputRule,
    views: tuple[str, ...],
    origin: Mapping[str, Any],
    device: torch.device,
    use_bf16: bool,
    progress: Progress | None = None,
) -> FeatureMaps:
    """Run backbone and pyramid over a dataset, except for the images whose maps an earlier call has left.

    Args:
        trunk: Detector in evaluation mode, on ``device``.
        records: Images with known sizes.
        folder: Folder for this dataset at this input size.
        rule: Size rule and padding of the network's input.
        views: Views that are wanted.
        origin: What else the maps depend on (fingerprints of weights and data); stored, and compared with what an earlier call stored.
        device, use_bf16: Device and precision to compute in; maps are stored in that precision.
        progress: Shows how far the work is.

    Raises:
        RunFolderError: if the folder holds maps of something else.
        ImageError: for an image that cannot be read.
    """
    maps = FeatureMaps(folder=folder, records=records, rule=rule, views=views)
    about = {**origin, "rule": rule.model_dump(mode="json"), "bf16": use_bf16}
    _require_same(folder, about)
    missing = [image for image in range(records.num_images) if not all(maps.path(image, view).is_file() for view in views)]
    if not missing:
        return maps
    write_text(folder / _ABOUT, json.dumps(about, indent=1) + "\n")
    dtype = torch.bfloat16 if use_bf16 else torch.float32
    for image in tracked(missing, len(missing), f"feature maps at {rule.size}", progress):
        size_hw = maps.resized_hw(image)
        resized = resize(to_tensor(decode(records.path(image))), size_hw, rule)
        images = [resized.flip(2) if view == "mirrored" else resized for view in views]
        inputs = normalise(pad_to(images, maps.padded_hw(image)).to(device), torch.tensor([size_hw] * len(views)), rule)
        with torch.inference_mode(), autocast(device, use_bf16):
            pyramid = trunk.fpn(trunk.backbone(inputs))
        for row, view in enumerate(views):
            tensors = {level: pyramid[level][row].permute(1, 2, 0).to("cpu", dtype).contiguous() for level in LEVELS}
            with replacing(maps.path(image, view), durable=False) as temporary:
                save_tensors(tensors, temporary)
    return maps


def _require_same(folder: Path, about: Mapping[str, Any]) -> None:
    if not (folder / _ABOUT).is_file():
        return
    earlier = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    different = [name for name in about if earlier.get(name) != json.loads(json.dumps(about[name]))]
    if different:
        raise RunFolderError(f"{folder} holds feature maps made with another {' and '.join(different)}; choose another output folder")
