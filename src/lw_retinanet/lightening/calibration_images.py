"""Calibration images: found in what a user gives, and read as a network takes them. Labels are never read."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lw_retinanet.conventions import InputRule
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.image_files import find_images
from lw_retinanet.data.image_sizes import require_files
from lw_retinanet.data.images import as_array, decode
from lw_retinanet.data.preprocess import normalise, pad_to, padded_size, resize, resized_size, to_tensor
from lw_retinanet.errors import DataError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    Images = str | Path | Tensor | Iterable[str | Path | Image | NDArray[np.uint8] | Tensor]

CalibrationImage = Path | NDArray[np.uint8] | Tensor
MAX_FILES = 512  # drawn from a folder or data set that has more


def find_calibration_images(images: "Images", *, channels: int = 3, seed: int = 0) -> list[CalibrationImage]:
    """Check what a user gives as calibration images, before any work is done. Files are found here and decoded later.

    Args:
        images: A folder or a data set, from whose training split up to :data:`MAX_FILES` files are drawn; or single images: files, folders,
            patterns, PIL images, (H, W, 3) uint8 arrays, and (3, H, W) float tensors as the model takes them.
        channels: The number of channels that the model takes.
        seed: Seed for the draw.

    Raises:
        InputError: if there are no images, or one of them cannot be used; the message says which.
    """
    if isinstance(images, str | Path):
        return list(calibration_files(Path(images), count=MAX_FILES, seed=seed))
    found: list[CalibrationImage] = []
    for place, item in enumerate(images):
        if isinstance(item, str | Path):
            found += find_images([item])
        elif isinstance(item, Tensor):
            found.append(_checked(item, place, channels))
        else:
            try:
                found.append(as_array(item))
            except InputError as error:
                raise type(error)(f"images[{place}]: {error}") from None
    if not found:
        raise InputError("images is empty; give some that are like those the model will see, or leave it out to use the old weights alone")
    if channels != 3 and not all(isinstance(image, Tensor) for image in found):
        raise InputError(f"the model takes images of {channels} channels, files and arrays have 3; give tensors ({channels}, H, W)")
    return found


def _checked(image: Tensor, place: int, channels: int) -> Tensor:
    if image.ndim != 3 or image.shape[0] != channels or image.numel() == 0:
        raise InputError(f"images[{place}] has shape {tuple(image.shape)}; give one image as ({channels}, H, W)")
    if not image.is_floating_point():
        raise InputError(f"images[{place}] is {image.dtype}; give floats as the model takes them, usually 0..1 (image / 255)")
    if not torch.isfinite(image).all():
        raise InputError(f"images[{place}] holds values that are not finite (NaN or infinity); leave it out or repair it")
    return image.detach().float()


def calibration_files(source: Path, *, count: int, seed: int = 0) -> list[Path]:
    """List the images of a data set's training split, or of any folder of images.

    Args:
        source: A data set or a folder.
        count: The largest number of files; from more, that many are drawn at random.
        seed: Seed for the draw.

    Raises:
        InputError: if there are no images.
        ImageError: if an image that the annotations name is missing.
    """
    try:
        dataset = Dataset.open(source)
        records = dataset.part(dataset.or_whole("train")).read().joined()
    except DataError as error:
        if not source.is_dir():
            raise
        try:  # A folder of images without annotations is enough, because labels are not read.
            files = find_images([source])
        except InputError:
            raise error from None
    else:
        require_files(records)
        files = records.paths()
    if len(files) > count:
        files = [files[place] for place in sorted(np.random.default_rng(seed).permutation(len(files))[:count])]
    return files


def calibration_inputs(files: Sequence[Path], rule: InputRule, *, mirrored: bool) -> Iterator[Tensor]:
    """Read files as network inputs: (1, 3, H, W) each, resized, padded and normalised as for prediction.

    Raises:
        ImageError: for an image that is missing or cannot be read.
    """
    for file in files:
        image = to_tensor(decode(file))
        image = resize(image, resized_size((image.shape[1], image.shape[2]), rule), rule)
        if mirrored:
            image = image.flip(2)
        size_hw = (image.shape[1], image.shape[2])
        yield normalise(pad_to([image], padded_size([size_hw], rule.pad_multiple)), torch.tensor([size_hw]), rule)


def image_tensor(image: CalibrationImage) -> Tensor:
    """An image as a torchvision detector takes it: (3, H, W) float, 0..1 if it comes from a file or an array."""
    if isinstance(image, Tensor):
        return image
    return to_tensor(decode(image) if isinstance(image, Path) else image).float() / 255
