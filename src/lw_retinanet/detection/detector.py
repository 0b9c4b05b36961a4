"""Pictures in, boxes out: the object that every way of using a model shares."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lw_retinanet.conventions import Conventions
from lw_retinanet.data.image_files import find_images
from lw_retinanet.data.images import decode
from lw_retinanet.data.preprocess import normalise, pad_to, padded_size, resize, resized_size, to_tensor
from lw_retinanet.data.records import Category
from lw_retinanet.detection.network import InferenceNetwork
from lw_retinanet.detection.pipeline import in_groups, read_ahead
from lw_retinanet.detection.result import Result
from lw_retinanet.devices import Precision, to_device
from lw_retinanet.errors import ConfigError, ImageError, InputError, nearest
from lw_retinanet.models.postprocess import detect
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Detections, Predictions

if TYPE_CHECKING:
    from PIL.Image import Image

    from lw_retinanet.weights.model_file import ModelRecord

    Source = str | Path | Image | NDArray[np.uint8]

HeadChoice = Literal["light", "full"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the network gets of N pictures.

    Args:
        images: (N, 3, H, W) float32, normalised, channels last, on the device.
        sizes_hw: (N, 2) picture inside the padding, on the device.
        pictures_hw: N heights and widths of the originals.
    """

    images: Tensor
    sizes_hw: Tensor
    pictures_hw: list[tuple[int, int]]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width with padding."""
        return int(self.images.shape[2]), int(self.images.shape[3])


class Detector:
    """A trained network with everything that its answers need.

    Predicting runs a copy of the network in which batch norm is folded into the convolutions: the same answers but for rounding. ``model``
    stays as it was built, to be trained on or saved, and the copy follows it (:mod:`lw_retinanet.detection.network` says how).

    Args:
        model: put into evaluation mode and channels last, on the device.
        categories: its classes, in the order of the labels.
        device: to compute on.
        precision: of the network: ``fp32``, ``bf16``, or ``auto``: the faster one, by a measurement at the first picture.
        fold: False runs ``model`` itself, for models that share parts.
        compile: run the network through ``torch.compile``: a minute at first for every size of input, some per cent faster after that.
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
        precision: Precision = "fp32",
        fold: bool = True,
        compile: bool = False,  # noqa: A002
        name: str = "",
        record: "ModelRecord | None" = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.categories = categories
        self.precision: Precision = precision
        self._network = InferenceNetwork(precision=precision, fold=fold, compile=compile)
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
    def chosen_precision(self) -> Literal["fp32", "bf16"] | None:
        """What the network computes in; None while ``auto`` has not been measured."""
        return self._network.chosen

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

    def predict(
        self, sources: "Sequence[Source] | Source", *, score: float | None = None, head: HeadChoice | None = None, batch_size: int = 1
    ) -> list[Result]:
        """Detect in pictures.

        Args:
            sources: one or several of: file, folder or glob; PIL picture; (H, W, 3) or (H, W) uint8 array, RGB.
            score: smallest score; None takes the model's own threshold.
            head: see :meth:`with_head`; None takes the detector's own choice, which is ``light`` unless it was made with another.
            batch_size: pictures at a time, of those that have the same size when they are resized and padded. On a CPU one at a time is
                as fast; on a GPU more are faster.

        Returns:
            One result a picture, in order. Its answer does not depend on the other pictures, but for rounding.

        Raises:
            InputError: for a source that is none of these or matches no file, a score outside 0..1, or a head that is not there.
            ImageError: for a picture that cannot be read.
        """
        items = [sources] if isinstance(sources, str | Path | np.ndarray) or not isinstance(sources, Sequence) else list(sources)
        pictures: list[object] = []
        for item in items:
            pictures += find_images([item]) if isinstance(item, str | Path) else [item]
        results = []
        for result in self._stream(pictures, score=score, head=head, batch_size=batch_size):
            if isinstance(result, ImageError):
                raise result
            results.append(result)
        return results

    def predict_file(self, path: Path, *, score: float | None = None, head: HeadChoice | None = None) -> Result:
        """Detect in one file."""
        return self.predict_arrays([decode(path)], files=[str(path)], score=score, head=head)[0]

    def predict_files(
        self, files: Sequence[Path], *, score: float | None = None, head: HeadChoice | None = None, batch_size: int = 1
    ) -> Iterator[Result | ImageError]:
        """Detect in many files, in order, reading ahead in threads; a picture that cannot be read comes back as its error and does not
        stop the rest. Arguments as for :meth:`predict`.
        """
        return self._stream(files, score=score, head=head, batch_size=batch_size)

    def predict_arrays(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        files: Sequence[str | None] | None = None,
        score: float | None = None,
        head: HeadChoice | None = None,
    ) -> list[Result]:
        """Detect in decoded pictures; those that have the same size when they are resized and padded go through the network together.

        None is padded for the sake of another: a network sees padding.

        Args:
            images: (H, W, 3) uint8 RGB, any sizes.
            files: names to put into the results.
            score: smallest score; None takes the model's own threshold.
            head: as for :meth:`predict`.
        """
        conventions, is_full = self._asked(score, head)
        pictures = [_Picture(file=files[row] if files else None, image=image) for row, image in enumerate(images)]

        def detected(group: list[_Picture]) -> list[Result]:
            return self._detect(group, conventions, is_full)

        return list(in_groups(pictures, lambda picture: self.padded_hw(picture.size_hw), detected, size=max(1, len(images))))

    def _asked(self, score: float | None, head: HeadChoice | None) -> tuple[Conventions, bool]:
        """The conventions under a caller's own score, and whether the full head is to answer."""
        is_full = (self.head if head is None else self._checked(head)) == "full"
        if score is None:
            return self.conventions, is_full
        if not 0 <= score < 1:
            raise InputError(f"score must be from 0 to below 1, got {score}")
        own = self.conventions.output.model_copy(update={"score_threshold": score, "last_level_score_threshold": None})
        return self.conventions.model_copy(update={"output": own}), is_full

    def _stream(
        self, sources: Iterable[object], *, score: float | None, head: HeadChoice | None, batch_size: int
    ) -> Iterator[Result | ImageError]:
        """One outcome a file, PIL picture or array."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        conventions, is_full = self._asked(score, head)

        def run(group: "list[_Picture | ImageError]") -> list[Result | ImageError]:
            pictures = [picture for picture in group if isinstance(picture, _Picture)]
            found: list[Result | ImageError] = list(self._detect(pictures, conventions, is_full))
            return found or list(group)  # type: ignore[arg-type]  # a group is of pictures or of errors

        # PIL pictures are read here, since one object may come twice; only files go to the threads.
        taken = (source if isinstance(source, Path) else _Picture(file=None, image=as_array(source)) for source in sources)
        return in_groups(read_ahead(taken, _read, number=2 * batch_size), self._kind, run, size=batch_size)

    def _kind(self, outcome: "_Picture | ImageError") -> tuple[int, int] | None:
        return None if isinstance(outcome, ImageError) else self.padded_hw(outcome.size_hw)

    def padded_hw(self, picture_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the input that a picture alone becomes; pictures of which these are the same go through together."""
        rule = self.conventions.input
        return padded_size([resized_size(picture_hw, rule)], rule.pad_multiple)

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> Inputs:
        """Resize, pad to the largest, put on the device and normalise: what the network gets of these pictures."""
        rule = self.conventions.input
        pictures_hw = [(image.shape[0], image.shape[1]) for image in images]
        sizes = [resized_size(picture_hw, rule) for picture_hw in pictures_hw]
        size_hw = padded_size(sizes, rule.pad_multiple)
        batch = pad_to([resize(to_tensor(image), size, rule) for image, size in zip(images, sizes, strict=True)], size_hw)
        sizes_hw = to_device(torch.tensor(sizes), self.device)
        return Inputs(images=normalise(to_device(batch, self.device), sizes_hw, rule), sizes_hw=sizes_hw, pictures_hw=pictures_hw)

    def network(self, images: Tensor, *, full_head: bool = False) -> Predictions:
        """The network alone: (N, 3, H, W) as :meth:`prepare` gives them -> logits and deltas of all anchors.

        Everything before and after is the same for every way of running it; a detector with another runtime overrides this.
        """
        return self._network(self.model, images, full_head=full_head)

    def detections(self, inputs: Inputs, conventions: Conventions, *, full_head: bool = False) -> Detections:
        """Boxes in pixels of the originals, from what :meth:`prepare` gave; a runtime that finds boxes by itself overrides this."""
        return detect(
            self.network(inputs.images, full_head=full_head),
            size_hw=inputs.size_hw,
            sizes_hw=inputs.sizes_hw,
            conventions=conventions,
            pictures_hw=inputs.pictures_hw,
        )

    @torch.inference_mode()
    def _detect(self, pictures: "Sequence[_Picture]", conventions: Conventions, is_full: bool) -> list[Result]:
        """All in one batch."""
        if not pictures:
            return []
        found = self.detections(self.prepare([picture.image for picture in pictures]), conventions, full_head=is_full)
        boxes, scores, labels = found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()
        return [
            Result(
                file=picture.file,
                image=picture.image,
                boxes=boxes[row, :count],
                scores=scores[row, :count],
                labels=labels[row, :count],
                categories=self.categories,
            )
            for row, (picture, count) in enumerate(zip(pictures, found.counts.tolist(), strict=True))
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Picture:
    file: str | None
    image: NDArray[np.uint8]

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]


def _read(source: Path | _Picture) -> _Picture | ImageError:
    if isinstance(source, _Picture):
        return source
    try:
        return _Picture(file=str(source), image=decode(source))
    except ImageError as error:
        return error


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
