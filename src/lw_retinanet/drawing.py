"""Figures for people: boxes with names and scores on an image, several images on one sheet, and writing both."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.files import replacing, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Colour = tuple[int, int, int]
_Rect = tuple[int, int, int, int]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Okabe and Ito's colours, told apart with every common form of colour blindness; the order puts unlike ones first.
_HUES: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
_BLACK: Colour = (17, 17, 17)
_WHITE: Colour = (255, 255, 255)
_MAX_NAME = 28
_FIGURE_FORMATS = ("png", "svg", "pdf")


def class_colour(label: int) -> Colour:
    """The colour of class ``label``: seven hues, then the same hues lighter, then darker, then all of them again."""
    hue, shade = _HUES[label % len(_HUES)], label // len(_HUES) % 3
    target, share = ((0, 0.0), (255, 0.5), (0, 0.4))[shade]
    red, green, blue = (round(channel + (target - channel) * share) for channel in hue)
    return red, green, blue


def draw_boxes(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    scores: ArrayLike | None = None,
    crowd: ArrayLike | None = None,
    *,
    remarks: Sequence[str] | None = None,
    zoom: int = 1,
) -> NDArray[np.uint8]:
    """Return a copy of ``image`` with a frame and a tag for every object.

    Frames are outside their boxes, so that small objects stay visible, and tags are where they hide least. Lines and text grow with the
    image.

    Args:
        image: (H, W, 3) RGB.
        boxes: (B, 4) xyxy in pixels of ``image``. Boxes that are not finite or outside the image are left out.
        labels: (B,) indices into ``names``.
        names: Class names. A label without a name is shown as a number.
        scores: (B,) values from 0 to 1, written behind the name.
        crowd: (B,) true for regions that scoring ignores. Their frame is dashed, and the tag says so.
        remarks: B words for the end of the tags. The frame of an object with a remark is dashed.
        zoom: Enlarge the image this many times first, to make room for tags on very small images.

    Returns:
        (zoom * H, zoom * W, 3).
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if zoom < 1:
        raise ValueError(f"zoom must be at least 1, got {zoom}")
    canvas = Image.fromarray(np.ascontiguousarray(image))
    if zoom > 1:
        canvas = canvas.resize((canvas.width * zoom, canvas.height * zoom), Image.Resampling.BICUBIC)
    side = float(np.sqrt(canvas.width * canvas.height))
    line = max(1, round(side / 400 + 0.6))
    objects = list(_objects(canvas.size, np.asarray(boxes, np.float64).reshape(-1, 4) * zoom, labels, names, scores, crowd, remarks))

    draw = ImageDraw.Draw(canvas)
    for item in sorted(objects, key=lambda item: -_area(item.rect)):  # small ones last, on top
        _draw_frame(draw, canvas.size, item, line)
    _draw_tags(draw, canvas.size, objects, line, _font(max(9, round(6 + side / 64))))
    return np.array(canvas)


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    columns: int = 4,
    titles: Sequence[str] | None = None,
    width: int = 1200,
) -> NDArray[np.uint8]:
    """Place images on one white sheet, row by row, each fitted into its cell and centred, with its title below.

    Args:
        images: At least one (H, W, 3) RGB image, of any size.
        columns: Cells in each row. Fewer images than that share the whole width.
        titles: A title for each image, cut if it does not fit.
        width: Width of the sheet in pixels.

    Returns:
        (height, width, 3), as high as the rows need.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images")
    columns = max(1, min(columns, len(images)))
    margin = max(4, width // 80)
    cell = (width - margin * (columns + 1)) // columns
    if cell < 8:
        raise ValueError(f"{columns} columns do not fit into a width of {width} pixels")
    font = _font(max(10, min(18, cell // 16)))
    title_height = _text_size("Ág", font)[1] + margin // 2 if titles is not None else 0

    fitted = [_fit(image, cell, round(1.25 * cell)) for image in images]
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    heights = [max(fitted[index].height for index in row) for row in rows]
    sheet = Image.new("RGB", (width, margin + sum(height + title_height + margin for height in heights)), _WHITE)
    draw = ImageDraw.Draw(sheet)
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left = margin + column * (cell + margin)
            sheet.paste(fitted[index], (left + (cell - fitted[index].width) // 2, top + (height - fitted[index].height) // 2))
            if titles is not None:
                text = _cut_to_width(_one_line(titles[index]), font, cell)
                draw.text((left + (cell - _text_size(text, font)[0]) // 2, top + height + margin // 4), text, fill=_BLACK, font=font)
        top += height + title_height + margin
    return np.array(sheet)


def save_image(image: NDArray[np.uint8], path: Path) -> None:
    """Write an (H, W, 3) RGB array completely or not at all. The suffix decides the format.

    Raises:
        InputError: For a suffix that is no image format.
        OutputError: If the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in Image.registered_extensions():
        raise InputError(f"{path}: an image's name must end in .jpg, .png or another image format")
    # Full colour resolution: thin coloured lines stay crisp.
    options: dict[str, Any] = {"quality": 92, "subsampling": 0} if suffix in (".jpg", ".jpeg") else {}
    with replacing(path, durable=False) as temporary:
        Image.fromarray(image).save(temporary, **options)


def encoded_jpeg(image: NDArray[np.uint8], *, longest: int) -> bytes:
    """An (H, W, 3) RGB array as a small JPEG file, made smaller if a side is longer than ``longest``."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, format="jpeg", quality=82)
    return content.getvalue()


def save_figure(draw: Callable[[], "Figure"], path: Path) -> None:
    """Draw a matplotlib figure and write it (150 dpi) completely or not at all. The same figure always gives the same file.

    Args:
        draw: Makes the figure. It is called after the file's name has been checked.
        path: File to write; its suffix decides the format.

    Raises:
        ConfigError: If the name does not end in .png, .svg or .pdf.
        OutputError: If the file cannot be written.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in _FIGURE_FORMATS:
        raise ConfigError(f"{path}: a chart's name must end in {', '.join(f'.{known}' for known in _FIGURE_FORMATS)}")
    from matplotlib import rc_context

    content = io.BytesIO()
    # By default every file holds random ids and the date.
    with rc_context({"svg.hashsalt": "lw-retinanet", "svg.fonttype": "none"}):
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        draw().savefig(content, format=kind, dpi=150, metadata=metadata)
    write_bytes(path, content.getvalue())


@dataclass(frozen=True, kw_only=True)
class _Object:
    rect: _Rect  # left, top, right, bottom: whole pixels, inclusive
    text: str
    colour: Colour
    is_dashed: bool


def _objects(
    size: tuple[int, int],
    boxes: NDArray[np.float64],
    labels: ArrayLike,
    names: Sequence[str],
    scores: ArrayLike | None,
    crowd: ArrayLike | None,
    remarks: Sequence[str] | None,
) -> Iterator[_Object]:
    """The visible part of each box in an image of ``size`` (width, height), in whole pixels."""
    all_labels = np.asarray(labels, np.int64).reshape(-1)
    all_scores = None if scores is None else np.asarray(scores, np.float64).reshape(-1)
    is_crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool).reshape(-1)
    for what, values in (("labels", all_labels), ("scores", all_scores), ("crowd", is_crowd), ("remarks", remarks)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{len(values)} {what} for {len(boxes)} boxes")
    width, height = size
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        if not np.isfinite(boxes[row]).all() or x2 < 0 or y2 < 0 or x1 >= width or y1 >= height:
            continue
        left, top = (min(max(round(value), 0), limit - 1) for value, limit in ((x1, width), (y1, height)))
        right, bottom = (min(max(round(value) - 1, least), limit - 1) for value, least, limit in ((x2, left, width), (y2, top, height)))
        label = int(all_labels[row])
        text = _one_line(names[label] if 0 <= label < len(names) else f"class {label}")
        text = text if len(text) <= _MAX_NAME else text[: _MAX_NAME - 3] + "..."
        text += "" if all_scores is None else f" {all_scores[row]:.2f}"
        remark = "(ignored)" if is_crowd[row] else remarks[row] if remarks else ""
        text += f" {remark}" if remark else ""
        yield _Object(rect=(left, top, right, bottom), text=text, colour=class_colour(label), is_dashed=bool(remark))


def _draw_frame(draw: ImageDraw.ImageDraw, size: tuple[int, int], item: _Object, line: int) -> None:
    frame = _grown(item.rect, line, size)
    # A dark rim keeps the colour visible on a background of the same colour.
    draw.rectangle(_grown(frame, 1, size), outline=_BLACK, width=1)
    if not item.is_dashed:
        draw.rectangle(frame, outline=item.colour, width=line)
        return
    left, top, right, bottom = frame
    dash = 4 * line
    for x in range(left, right + 1, 2 * dash):
        draw.rectangle((x, top, min(x + dash - 1, right), min(top + line - 1, bottom)), fill=item.colour)
        draw.rectangle((x, max(bottom - line + 1, top), min(x + dash - 1, right), bottom), fill=item.colour)
    for y in range(top, bottom + 1, 2 * dash):
        draw.rectangle((left, y, min(left + line - 1, right), min(y + dash - 1, bottom)), fill=item.colour)
        draw.rectangle((max(right - line + 1, left), y, right, min(y + dash - 1, bottom)), fill=item.colour)


def _draw_tags(draw: ImageDraw.ImageDraw, size: tuple[int, int], objects: Sequence[_Object], line: int, font: _Font) -> None:
    rects = np.array([item.rect for item in objects], np.float64).reshape(-1, 4)
    areas = (rects[:, 2] - rects[:, 0] + 1) * (rects[:, 3] - rects[:, 1] + 1)
    placed = np.zeros((0, 4))
    for item in objects:
        text_width, text_height = _text_size(item.text, font)
        pad = max(1, text_height // 6)
        tag_size = (min(text_width + 2 * pad, size[0]), min(text_height + 2 * pad, size[1]))
        best: _Rect | None = None
        lowest = np.inf
        for order, place in enumerate(_tag_places(_grown(item.rect, line, size), tag_size, size)):
            # The share of each object that the tag hides, tags on tags weighing most, the usual place first among equals.
            cost = float((_overlaps(place, rects) / areas).sum()) + 0.01 * order
            cost += 10.0 * float(_overlaps(place, placed).sum()) / (tag_size[0] * tag_size[1])
            if cost < lowest:
                best, lowest = place, cost
        assert best is not None
        placed = np.concatenate((placed, np.array([best], np.float64)))
        draw.rectangle(best, fill=item.colour)
        draw.text((best[0] + pad, best[1] + pad), item.text, fill=_text_colour(item.colour), font=font, anchor="lt")


def _tag_places(frame: _Rect, tag_size: tuple[int, int], size: tuple[int, int]) -> Iterator[_Rect]:
    """Where a tag may go, best first: above, below, beside, then inside; always moved into the image."""
    left, top, right, bottom = frame
    width, height = tag_size
    for x, y in (
        (left, top - height),
        (right - width + 1, top - height),
        (left, bottom + 1),
        (right - width + 1, bottom + 1),
        (right + 1, top),
        (left - width, top),
        (right + 1, bottom - height + 1),
        (left - width, bottom - height + 1),
        (left, top),
        (right - width + 1, top),
        (left, bottom - height + 1),
        (right - width + 1, bottom - height + 1),
    ):
        x, y = min(max(x, 0), size[0] - width), min(max(y, 0), size[1] - height)
        yield x, y, x + width - 1, y + height - 1


def _overlaps(rect: _Rect, others: NDArray[np.float64]) -> NDArray[np.float64]:
    widths = np.minimum(rect[2], others[:, 2]) - np.maximum(rect[0], others[:, 0]) + 1
    heights = np.minimum(rect[3], others[:, 3]) - np.maximum(rect[1], others[:, 1]) + 1
    return np.maximum(widths, 0) * np.maximum(heights, 0)


def _grown(rect: _Rect, by: int, size: tuple[int, int]) -> _Rect:
    left, top, right, bottom = rect
    return max(left - by, 0), max(top - by, 0), min(right + by, size[0] - 1), min(bottom + by, size[1] - 1)


def _area(rect: _Rect) -> int:
    return (rect[2] - rect[0] + 1) * (rect[3] - rect[1] + 1)


def _text_colour(background: Colour) -> Colour:
    """Black or white, whichever has the higher contrast (relative luminance of the WCAG)."""
    linear = [
        channel / 12.92 if channel <= 0.03928 else ((channel + 0.055) / 1.055) ** 2.4 for channel in (value / 255 for value in background)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _BLACK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else _WHITE


@lru_cache(maxsize=16)
def _font(size: int) -> _Font:
    return ImageFont.load_default(size)


def _text_size(text: str, font: _Font) -> tuple[int, int]:
    """Width of the text, and the height of any text in this font, so that all tags are equally high."""
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Ág")
    return round(right - left), round(bottom - top)


def _cut_to_width(text: str, font: _Font, width: int) -> str:
    if _text_size(text, font)[0] <= width:
        return text
    while text and _text_size(text + "...", font)[0] > width:
        text = text[:-1]
    return text + "..."


def _one_line(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _fit(image: NDArray[np.uint8], width: int, height: int) -> Image.Image:
    scale = min(width / image.shape[1], height / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS)
