"""Pictures in, boxes out: the object that every way of using a model shares."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from lw_retinanet.config import nearest
from lw_retinanet.conventions import Conventions
from lw_retinanet.data.image_files import find_images
from lw_retinanet.data.images import decode
from lw_retinanet.data.preprocess import normalise, pad_to, padded_size, resize, resized_size, to_tensor
from lw_retinanet.data.records import Category
from lw_retinanet.detect.result import Result
from lw_retinanet.errors import ConfigError, ImageError, InputError
from lw_retinanet.models.postprocess import detect
from lw_retinanet.models.retinanet import RetinaNet

if TYPE_CHECKING:
    from PIL.Image import Image

    from lw_retinanet.weights.model_file import ModelRecord

    Source = str | Path | Image | NDArray[np.uint8]

HeadChoice = Literal["light", "full"]


class Detector:
    """A trained network with everything that its answers need.

    Args:
        model: in evaluation mode.
        categories: its classes, in the order of the labels.
        device: to compute on.
        use_bf16: run the network under bf16 autocast.
        name: for people.
        record: of the model's file, if it came from one.

    Attributes:
        head: that answers where a call does not say which.
    """

    def __init__(
        self,
        model: RetinaNet,
        categories: tuple[Category, ...],
        *,
        device: torch.device | str = "cpu",
        use_bf16: bool = False,
        name: str = "",
        record: "ModelRecord | None" = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.categories = categories
        self.use_bf16 = use_bf16
        self.name = name
        self.record = record
        self.head: HeadChoice = "light"

    @property
    def conventions(self) -> Conventions:
        return self.model.conventions

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @property
    def switchable(self) -> bool:
        """Whether this is a lightened model that still holds the full head that it had before."""
        return self.record is not None and self.record.switchable

    def with_head(self, head: str) -> Self:
        """The same detector, network and all, that answers with another head.

        Args:
            head: ``light`` is the head as it stands; ``full`` the one of before lightening. A model whose levels all share one head has
                only that, and answers to both names with it.

        Raises:
            ConfigError: for another word.
            InputError: for ``full``, where there is none.
        """
        made = copy.copy(self)
        made.head = self._checked(head)
        return made

    def _checked(self, head: str) -> HeadChoice:
        chosen = next((known for known in get_args(HeadChoice) if head == known), None)
        if chosen is None:
            raise ConfigError(f"head {head!r}: expected {' or '.join(get_args(HeadChoice))}{nearest(head, get_args(HeadChoice))}")
        if chosen == "full" and not self.switchable and (self.model.head.plan.cls or self.model.head.plan.bbox):
            raise InputError(
                f"{self.name or 'the model'} holds one head only, so there is no full head to switch to; "
                "lighten a model with `lw-retinanet lighten`, whose files hold both"
            )
        return chosen

    def predict(self, sources: "Sequence[Source] | Source", *, score: float | None = None, head: HeadChoice | None = None) -> list[Result]:
        """Detect in pictures.

        Args:
            sources: one or several of: file, folder or glob; PIL picture; (H, W, 3) or (H, W) uint8 array, RGB.
            score: smallest score; None takes the model's own threshold.
            head: see :meth:`with_head`; None takes the detector's own choice, which is ``light`` unless it was made with another.

        Returns:
            One result a picture, in order. Each picture is looked at by itself, so its answer does not depend on the others.

        Raises:
            InputError: for a source that is none of these or matches no file, a score outside 0..1, or a head that is not there.
            ImageError: for a picture that cannot be read.
        """
        items = [sources] if isinstance(sources, str | Path | np.ndarray) or not isinstance(sources, Sequence) else list(sources)
        results: list[Result] = []
        for item in items:
            if isinstance(item, str | Path):
                results += [self.predict_file(path, score=score, head=head) for path in find_images([item])]
            else:
                results += self.predict_arrays([as_array(item)], score=score, head=head)
        return results

    def predict_file(self, path: Path, *, score: float | None = None, head: HeadChoice | None = None) -> Result:
        """Detect in one file."""
        return self.predict_arrays([decode(path)], files=[str(path)], score=score, head=head)[0]

    @torch.inference_mode()
    def predict_arrays(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        files: Sequence[str | None] | None = None,
        score: float | None = None,
        head: HeadChoice | None = None,
    ) -> list[Result]:
        """Detect in decoded pictures, all in one batch.

        All are padded to the largest, and a network sees padding: where a picture is padded further than it would be alone, its
        answer may differ slightly.

        Args:
            images: (H, W, 3) uint8 RGB, any sizes.
            files: names to put into the results.
            score: smallest score; None takes the model's own threshold.
            head: as for :meth:`predict`.
        """
        is_full = (self.head if head is None else self._checked(head)) == "full"
        if score is not None and not 0 <= score < 1:
            raise InputError(f"score must be from 0 to below 1, got {score}")
        if not images:
            return []
        conventions = self.conventions
        if score is not None:
            own = conventions.output.model_copy(update={"score_threshold": score, "last_level_score_threshold": None})
            conventions = conventions.model_copy(update={"output": own})
        rule = conventions.input
        pictures_hw = [(image.shape[0], image.shape[1]) for image in images]
        sizes = [resized_size(picture_hw, rule) for picture_hw in pictures_hw]
        size_hw = padded_size(sizes, rule.pad_multiple)
        batch = pad_to([resize(to_tensor(image), size, rule) for image, size in zip(images, sizes, strict=True)], size_hw).to(self.device)
        sizes_hw = torch.tensor(sizes, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16) if self.use_bf16 else contextlib.nullcontext():
            predictions = self.model(normalise(batch, sizes_hw, rule), **({"full_head": True} if is_full else {}))
        found = detect(predictions, size_hw=size_hw, sizes_hw=sizes_hw, conventions=conventions, pictures_hw=pictures_hw)
        counts = found.counts.tolist()
        boxes, scores, labels = found.boxes.cpu().numpy(), found.scores.cpu().numpy(), found.labels.cpu().numpy()
        return [
            Result(
                file=files[row] if files else None,
                image=image,
                boxes=boxes[row, :count],
                scores=scores[row, :count],
                labels=labels[row, :count],
                categories=self.categories,
            )
            for row, (image, count) in enumerate(zip(images, counts, strict=True))
        ]

    def predict_files(
        self, files: Sequence[Path], *, score: float | None = None, head: HeadChoice | None = None
    ) -> Iterator[Result | ImageError]:
        """Detect in many files, one after the other; a picture that cannot be read comes back as its error and does not stop the rest."""
        for path in files:
            try:
                yield self.predict_file(path, score=score, head=head)
            except ImageError as error:
                yield error


def as_array(image: object) -> NDArray[np.uint8]:
    """A PIL picture or an array as (H, W, 3) uint8 RGB."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or image.size == 0:
            raise InputError(f"an array must be (H, W, 3) or (H, W) uint8 in RGB order, got {image.shape} {image.dtype}")
        return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    from PIL.Image import Image

    if isinstance(image, Image):
        return _from_pil(image)
    raise InputError(f"expected a file, folder, glob, PIL picture or array, got {type(image).__name__}")


def _from_pil(image: "Image") -> NDArray[np.uint8]:
    """As the decoder reads files: turned as EXIF says, transparency over white, 16 bits scaled to 8."""
    from PIL import Image, ImageOps

    if image.mode in ("I", "F"):
        raise InputError(f"the range of a PIL picture of mode {image.mode} is unknown; convert it to 8 bits first")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return np.repeat(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.new("RGB", rgba.size, "white")
            image.paste(rgba, mask=rgba)
        return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:  # a file that PIL opened and now cannot decode
        raise ImageError(f"a PIL picture cannot be decoded ({error}); replace its file") from None
