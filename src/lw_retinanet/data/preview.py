"""Drawing some images of a data set with their boxes, one file an image and all together on a contact sheet."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Records
from lw_retinanet.drawing import contact_sheet, draw_boxes, save_image
from lw_retinanet.errors import ConfigError, InputError

_READABLE_SIDE = 480  # smaller images are enlarged, because the tags would cover their objects


def preview(records: Records, out: Path, *, count: int = 16, seed: int = 0) -> list[Path]:
    """Draw up to ``count`` images with their boxes, and ``contact_sheet.jpg`` with all of them, into the folder ``out``.

    The same seed chooses the same images. Every class is among them if ``count`` allows. Files of the same names are replaced.

    Returns:
        The files written, the contact sheet last.

    Raises:
        ImageError: if one of the images cannot be read.
        InputError: if there is nothing to show or ``out`` cannot be written.
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")
    images = choose(records, count=count, seed=seed)
    if not images:
        raise InputError(f"{records.root}: the data set has no images; nothing to preview")
    try:
        out.mkdir(parents=True, exist_ok=True)
        files, figures, titles = [], [], []
        for number, image in enumerate(images, start=1):
            figure = _draw(records, image)
            stem = re.sub(r"[^\w.-]+", "_", Path(records.file_names[image]).stem)[:80]
            files.append(out / f"{number:03d}_{stem}.jpg")
            save_image(figure, files[-1])
            figures.append(figure)
            titles.append(Path(records.file_names[image]).name)
        files.append(out / "contact_sheet.jpg")
        save_image(contact_sheet(figures, columns=min(4, len(figures)), titles=titles, width=1600), files[-1])
    except OSError as error:
        raise InputError(f"{out}: cannot write the preview ({error.strerror or error}); name a folder that can be written") from None
    return files


def choose(records: Records, *, count: int, seed: int) -> list[int]:
    """Choose up to ``count`` images, and return their sorted numbers: one for each class, the rarest class first, then any others."""
    order = np.random.default_rng(seed).permutation(records.num_images)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    # Each class once an image.
    pairs = np.unique(np.stack((records.labels.astype(np.int64), records.image_of_box), axis=1), axis=0)
    images_per_class = np.bincount(pairs[:, 0], minlength=len(records.categories))

    chosen: dict[int, None] = {}
    shown: set[int] = set()
    for label in np.argsort(images_per_class, kind="stable").tolist():
        if len(chosen) >= count:
            break
        candidates = pairs[pairs[:, 0] == label, 1]
        if label in shown or not len(candidates):
            continue
        image = int(candidates[np.argmin(rank[candidates])])
        chosen[image] = None
        shown.update(records.labels[records.rows(image)].tolist())
    for image in order.tolist():
        if len(chosen) >= count:
            break
        chosen.setdefault(image)
    return sorted(chosen)


def _draw(records: Records, image: int) -> NDArray[np.uint8]:
    pixels = records.decode(image)
    rows = records.rows(image)
    zoom = max(1, round(_READABLE_SIDE / max(pixels.shape[:2])))
    return draw_boxes(
        pixels, records.boxes(image), records.labels[rows], records.class_names, crowd=records.is_ignored[rows], zoom=min(zoom, 8)
    )
