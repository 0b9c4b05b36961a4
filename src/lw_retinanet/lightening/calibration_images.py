"""Calibration images as the network sees them, plain and mirrored; their labels, if any, are not read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lw_retinanet.conventions import InputRule
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.image_files import find_images
from lw_retinanet.data.image_sizes import require_files
from lw_retinanet.data.images import decode
from lw_retinanet.data.preprocess import normalise, pad_to, padded_size, resize, resized_size, to_tensor
from lw_retinanet.errors import DataError, InputError


def calibration_files(source: Path, *, count: int, seed: int = 0) -> list[Path]:
    """Pictures of a data set's training split, or of any folder of pictures: all of them, or ``count`` drawn at random.

    Raises:
        InputError: if there are none.
        ImageError: if one that the annotations name is missing.
    """
    try:
        dataset = Dataset.open(source)
        records = dataset.read(dataset.or_whole("train"))
    except DataError as error:
        if not source.is_dir():
            raise
        try:  # no annotations, but pictures: all that is needed here
            files = find_images([source])
        except InputError:
            raise error from None
    else:
        require_files(records)
        files = [records.path(image) for image in range(records.num_images)]
    if len(files) > count:
        files = [files[place] for place in sorted(np.random.default_rng(seed).permutation(len(files))[:count])]
    return files


def calibration_inputs(files: Sequence[Path], rule: InputRule, *, mirrored: bool) -> Iterator[Tensor]:
    """(1, 3, H, W) for each picture, resized, padded and normalised as for prediction.

    Raises:
        ImageError: for a picture that is missing or cannot be read.
    """
    for file in files:
        picture = to_tensor(decode(file))
        picture = resize(picture, resized_size((picture.shape[1], picture.shape[2]), rule), rule)
        if mirrored:
            picture = picture.flip(2)
        size_hw = (picture.shape[1], picture.shape[2])
        yield normalise(pad_to([picture], padded_size([size_hw], rule.pad_multiple)), torch.tensor([size_hw]), rule)
