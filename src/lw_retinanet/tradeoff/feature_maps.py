"""What a frozen trunk makes of the pictures of a data set: P3..P7, computed once and kept on disk."""

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
from safetensors.torch import load_file, save_file
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

_ABOUT = "about.json"


@dataclass(frozen=True, kw_only=True)
class FeatureMaps:
    """Maps of all pictures of a data set at one input size, in a folder.

    Args:
        folder: one file a picture and view.
        records: the pictures, with known sizes.
        rule: size rule and padding that they went in with.
        views: ``("plain",)``, or ``("plain", "mirrored")``.
    """

    folder: Path
    records: Records
    rule: InputRule
    views: tuple[str, ...]

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """(B,) bool boxes to train on."""
        return usable(self.records)

    def resized_hw(self, image: int) -> tuple[int, int]:
        """Height and width of a picture inside the network's input."""
        height, width = self.records.sizes_hw[image].tolist()
        return resized_size((height, width), self.rule)

    def padded_hw(self, image: int) -> tuple[int, int]:
        """Height and width of the network's input for a picture by itself."""
        return padded_size([self.resized_hw(image)], self.rule.pad_multiple)

    def path(self, image: int, view: str) -> Path:
        return self.folder / f"{image:06d}-{view}.safetensors"

    def load(self, images: Sequence[int], views: Sequence[str]) -> dict[str, Tensor]:
        """(N, C, H, W) maps by level, channels last in memory, of pictures with one padded size.

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
    """Run backbone and pyramid over a data set, or take up what an earlier call has left.

    Args:
        trunk: in evaluation mode, on ``device``.
        records: with known sizes.
        folder: for this data set at this input size.
        rule: of the input.
        views: which ones are wanted.
        origin: what the maps depend on besides (fingerprints of weights and data); kept, and compared with what is there.
        device, use_bf16: to compute on and with; maps are kept in the precision in which they are computed.
        progress: wraps the pictures, to show a bar.

    Raises:
        RunFolderError: if the folder holds maps of something else.
        ImageError: for a picture that cannot be read.
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
        picture = resize(to_tensor(decode(records.path(image))), size_hw, rule)
        pictures = [picture.flip(2) if view == "mirrored" else picture for view in views]
        inputs = normalise(pad_to(pictures, maps.padded_hw(image)).to(device), torch.tensor([size_hw] * len(views)), rule)
        with torch.inference_mode(), autocast(device, use_bf16):
            pyramid = trunk.fpn(trunk.backbone(inputs))
        for row, view in enumerate(views):
            tensors = {level: pyramid[level][row].permute(1, 2, 0).to("cpu", dtype).contiguous() for level in LEVELS}
            with replacing(maps.path(image, view), durable=False) as temporary:
                save_file(tensors, temporary)
    return maps


def _require_same(folder: Path, about: Mapping[str, Any]) -> None:
    if not (folder / _ABOUT).is_file():
        return
    earlier = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    different = [name for name in about if earlier.get(name) != json.loads(json.dumps(about[name]))]
    if different:
        raise RunFolderError(f"{folder} holds feature maps made with another {' and '.join(different)}; choose another --out")
