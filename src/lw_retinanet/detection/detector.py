"""Images in, boxes out: the object that every way of using a model shares."""

import copy
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from lw_retinanet.config import explain
from lw_retinanet.conventions import Conventions, OutputRule
from lw_retinanet.data.image_files import find_images
from lw_retinanet.data.images import as_array, decode
from lw_retinanet.data.preprocess import normalise, pad_to, padded_size, resize, resized_size, to_tensor
from lw_retinanet.data.records import Category
from lw_retinanet.data.video import VideoReader
from lw_retinanet.detection.display_score import SmallestScore
from lw_retinanet.detection.pipeline import in_groups, read_ahead
from lw_retinanet.detection.result import Result
from lw_retinanet.detection.runtime import Runtime, TorchRuntime
from lw_retinanet.detection.tiles import detect_tiled, open_source
from lw_retinanet.detection.tiling import Tiling
from lw_retinanet.detection.video import FrameResult, frame_results, video_batch, watch
from lw_retinanet.devices import ChosenPrecision, Precision, has_triton, to_device
from lw_retinanet.errors import ConfigError, ImageError, InputError, nearest, shown
from lw_retinanet.models.postprocess import ToImage, detect, detect_on_device, factors_to_images, lasting_tensors, unpacked
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.structures import Detections, Predictions
from lw_retinanet.weights.foreign.convention_overrides import convention_values
from lw_retinanet.weights.foreign.torchvision_twin import (
    torchvision_conventions,
    torchvision_twin,
    why_not_light,
    why_not_torchvision,
)
from lw_retinanet.weights.model_file import LoadedModel

if TYPE_CHECKING:
    from PIL.Image import Image

    from lw_retinanet.weights.model_file import ModelRecord

    Source = str | Path | Image | NDArray[np.uint8]

HeadChoice = Literal["light", "full"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NetworkInputs:
    """N images, prepared for the network.

    Args:
        images: (N, 3, H, W) float32, normalised, channels last, on the device.
        sizes_hw: (N, 2) image size inside the padding, on the device.
        originals_hw: N heights and widths of the images before they were resized.
    """

    images: Tensor
    sizes_hw: Tensor
    originals_hw: list[tuple[int, int]]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Padded height and width."""
        return int(self.images.shape[2]), int(self.images.shape[3])


class Detector:
    """A runtime with everything else that its answers need: preprocessing, decoding, NMS, class names.

    Args:
        runtime: Runs the network.
        categories: Classes, in the order of the labels.
        conventions: Preprocessing, anchors and thresholds of the weights.
        heads: Heads that the runtime can answer with; the first one answers where a call does not say which.
        name: Shown to people.
        record: Record of the model file, if the model came from one.

    Attributes:
        head: The head that answers where a call does not say which.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        categories: tuple[Category, ...],
        conventions: Conventions,
        heads: tuple[HeadChoice, ...] = ("light",),
        name: str = "",
        record: "ModelRecord | None" = None,
    ) -> None:
        self.runtime = runtime
        self.categories = categories
        self.conventions = conventions
        self._built_in = conventions.output if runtime.gives_boxes else None  # what the network itself applies, whatever a caller asks for
        self.heads = heads
        self.head: HeadChoice = heads[0]
        self.name = name
        self.record = record

    @classmethod
    def of_model(
        cls,
        model: RetinaNet,
        categories: tuple[Category, ...],
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        fold: bool = True,
        compile: bool = False,  # noqa: A002
        name: str = "",
        record: "ModelRecord | None" = None,
    ) -> Self:
        """A detector that runs a model in PyTorch.

        Args:
            model, device, precision, fold, compile: As for :class:`~lw_retinanet.detection.runtime.TorchRuntime`.
            categories, name, record: As for :class:`Detector`.
        """
        runtime = TorchRuntime(model, device=device, precision=precision, fold=fold, compile=compile)
        plan = model.head.plan
        # Without towers of its own, a level is answered by the shared head, which is both the light and the full one.
        has_full = (record is not None and record.switchable) or not (plan.cls or plan.bbox)
        heads: tuple[HeadChoice, ...] = ("light", "full") if has_full else ("light",)
        return cls(runtime, categories=categories, conventions=model.conventions, heads=heads, name=name, record=record)

    @property
    def model(self) -> RetinaNet:
        """The model that PyTorch runs.

        Raises:
            InputError: For an exported file, which holds no model to change or train.
        """
        if isinstance(self.runtime, TorchRuntime):
            return self.runtime.model
        raise InputError(f"{self.name or 'an exported file'} holds no weights to change or train; give the model file it was made from")

    def save(self, path: str | Path) -> Path:
        """Write the detector, with the conventions that it has now, as a model file, and return its path.

        Raises:
            InputError: For an exported file, or a network without a record, which no model file gave it.
        """
        return self.loaded().save(path)

    def loaded(self) -> LoadedModel:
        """The network with the conventions that the detector has now, and their record.

        Raises:
            InputError: As for :meth:`save`.
        """
        if self.record is None:
            raise InputError(f"{self.name or 'this detector'} has no record of how it was built; save the model that it was made from")
        model = copy.copy(self.model)
        model.conventions = self.conventions
        return LoadedModel(model=model, record=self.record.model_copy(update={"conventions": self.conventions}))

    def torchvision(self) -> nn.Module:
        """The same detector as torchvision's ``RetinaNet``, in evaluation mode: it takes a list of images in 0..1 and gives the same boxes.

        Light towers become what :func:`lw_retinanet.lighten` makes of a torchvision model.

        Raises:
            InputError: Where torchvision's class cannot give the same boxes; the message says why.
        """
        model, rules = self.model, self.conventions
        plan = model.head.plan
        is_light = self.head == "light" and bool(plan.cls or plan.bbox)
        reason = why_not_light(model) if is_light else why_not_torchvision(model, switchable=self.switchable)
        if reason is None and torchvision_conventions(rules) != rules:
            own, theirs = convention_values(rules), convention_values(torchvision_conventions(rules))
            different = next(name for name, value in own.items() if value != theirs[name])
            reason = f"its {different} is {own[different]}, and torchvision's is {theirs[different]}"
        if reason is not None:
            raise InputError(f"{self.name or 'this detector'} cannot be torchvision's class: {reason}; use the detector itself")
        copied = copy.copy(model)
        copied.conventions = rules
        return torchvision_twin(copied, light=is_light)

    @property
    def device(self) -> torch.device:
        """The device that the runtime computes on."""
        return self.runtime.device

    @property
    def precision(self) -> Precision:
        """The precision that was asked for."""
        return self.runtime.precision

    @property
    def chosen_precision(self) -> ChosenPrecision | None:
        """What the network computes in; None while ``auto`` has not been measured."""
        return self.runtime.chosen_precision

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return tuple(category.name for category in self.categories)

    @property
    def switchable(self) -> bool:
        """Whether this is a lightened model that still holds the full head that it had before."""
        return self.record is not None and self.record.switchable

    @property
    def best_score(self) -> float:
        """The smallest score that gave the largest F1 on the ``val`` split of the training, over all classes.

        Raises:
            InputError: For a model that was not trained here, or without such a split.
        """
        found = self.record.best_score if self.record is not None else None
        if found is None:
            raise InputError(
                f"{self.name or 'this model'} has no best score, which training on data with a val split finds; "
                "give a number, such as the best score that `lw-retinanet evaluate` prints for the model and such data"
            )
        return found

    def with_head(self, head: str) -> Self:
        """The same detector, network and all, that answers with another head.

        Args:
            head: ``light`` is the head as it stands; ``full`` is the one that the model had before lightening. A model whose levels all
                share one head answers to both names with it.

        Raises:
            ConfigError: For another word.
            InputError: For a head that is not there.
        """
        made = copy.copy(self)
        made.head = self._checked(head)
        return made

    def with_conventions(self, conventions: Conventions) -> Self:
        """The same detector, network and all, under other conventions, for instance another image size.

        Raises:
            InputError: For rules of NMS other than those that are built into the network; only the score threshold may be raised.
        """
        self._require_built_in(conventions.output)
        made = copy.copy(self)
        made.conventions = conventions
        return made

    def with_output(self, *, nms: float | None = None, class_agnostic: bool = False, max_detections: int | None = None) -> Self:
        """The same detector with another last step.

        Args:
            nms: NMS removes a box that overlaps a better one by more than this IoU; None keeps the model's own.
            class_agnostic: NMS also removes boxes that overlap a better one of another class.
            max_detections: Largest number of detections of an image; None keeps the model's own.

        Raises:
            ConfigError: For a value out of range.
            InputError: For rules that are built into an exported file.
        """
        asked = {"nms_iou": nms, "class_agnostic": class_agnostic or None, "max_detections": max_detections}
        changes = {name: value for name, value in asked.items() if value is not None}
        if not changes:
            return self
        try:
            output = OutputRule.model_validate({**self.conventions.output.model_dump(), **changes})
        except ValidationError as error:
            raise ConfigError(explain(error)) from None
        return self.with_conventions(self.conventions.model_copy(update={"output": output}))

    def _checked(self, head: str) -> HeadChoice:
        chosen = next((known for known in get_args(HeadChoice) if head == known), None)
        if chosen is None:
            raise ConfigError(f"head {head!r}: expected {' or '.join(get_args(HeadChoice))}{nearest(head, get_args(HeadChoice))}")
        if chosen in self.heads:
            return chosen
        name = self.name or "the model"
        if chosen == "light":
            raise InputError(f"{name} holds the full head only; export the model again for the light one")
        raise InputError(
            f"{name} holds one head only, so there is no full head to switch to; `lw-retinanet lighten` writes model files that hold "
            "both, and an exported file holds the one that was asked for"
        )

    def predict(
        self,
        sources: "Sequence[Source] | Source",
        *,
        score: SmallestScore | None = None,
        head: HeadChoice | None = None,
        batch_size: int = 1,
        max_pixels: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        whole_image: bool = False,
        bands: Sequence[int] | None = None,
        value_range: Sequence[float] | None = None,
    ) -> list[Result]:
        """Detect in images.

        Args:
            sources: One or several of: file, folder or glob; PIL image; (H, W, 3) or (H, W) uint8 array, RGB.
            score: Smallest score; ``best`` takes :attr:`best_score`. None takes the model's own threshold, which is lower than the default
                of :func:`lw_retinanet.predict`.
            head: See :meth:`with_head`; None takes the detector's own choice, which is ``light`` unless it was made with another.
            batch_size: Images that go through the network together, if they have the same padded size. On a CPU one at a time is as
                fast; on a GPU more are faster.
            max_pixels: The most pixels of a file's image; None is the decoder's own limit, 64 million.
            tile, overlap, whole_image, bands, value_range: For large images; see :class:`~lw_retinanet.detection.tiles.Tiling`.

        Returns:
            One result for each image, in order. It does not depend on the other images, but for rounding.

        Raises:
            InputError: For a source that is none of these or matches no file, a score outside 0..1, or a head that is not there.
            ImageError: For an image that cannot be read.
        """
        tiling = Tiling.of(tile, overlap=overlap, whole_image=whole_image, bands=bands, value_range=value_range)
        files = single_images(sources)
        return readable(self.predict_files(files, score=score, head=head, batch_size=batch_size, max_pixels=max_pixels, tiling=tiling))

    def predict_files(
        self,
        files: "Sequence[Source]",
        *,
        score: SmallestScore | None = None,
        head: HeadChoice | None = None,
        batch_size: int = 1,
        max_pixels: int | None = None,
        tiling: Tiling | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Result | ImageError]:
        """Detect in many files, in order, reading ahead in threads. An image that cannot be read comes back as its error and does not
        stop the rest.

        Args:
            files: Paths; PIL images and arrays may be among them.
            score, head, batch_size, max_pixels: As for :meth:`predict`.
            tiling: How every image is cut into tiles; None does not cut. The batches are tiles of one image then.
            progress: Shows how many tiles of an image are done.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if tiling is not None:
            return (
                self._predict_tiled(file, tiling, score=score, head=head, batch_size=batch_size, max_pixels=max_pixels, progress=progress)
                for file in files
            )
        # PIL images are converted in this thread, since the same object may come twice; only files go to the threads.
        taken = (Path(file) if isinstance(file, str | Path) else _NamedImage(file=None, pixels=as_array(file)) for file in files)
        return self._detect_all(
            read_ahead(taken, partial(_read, max_pixels=max_pixels), number=2 * batch_size), score=score, head=head, batch_size=batch_size
        )

    def predict_each(
        self,
        names: Iterable[str],
        read: Callable[[str], NDArray[np.uint8]],
        *,
        score: SmallestScore | None = None,
        head: HeadChoice | None = None,
        batch_size: int = 1,
    ) -> Iterator[Result | ImageError]:
        """Detect in what ``read`` makes of each name, in order; otherwise as :meth:`predict_files`.

        Args:
            names: Names of images, taken as they are needed, so that there may be any number of them.
            read: Gives (H, W, 3) uint8 RGB, or raises an ``ImageError``. Called in threads.
            score, head, batch_size: As for :meth:`predict`.
        """

        def load(name: str) -> _NamedImage | ImageError:
            try:
                return _NamedImage(file=name, pixels=read(name))
            except ImageError as error:
                return error

        return self._detect_all(read_ahead(names, load, number=2 * batch_size), score=score, head=head, batch_size=batch_size)

    def stream(
        self,
        source: str | Path | int,
        *,
        every: int = 1,
        score: SmallestScore | None = None,
        head: HeadChoice | None = None,
        batch_size: int | None = None,
        max_pixels: int | None = None,
    ) -> Generator[FrameResult, None, None]:
        """Detect in a video or camera, frame by frame. Reading overlaps with the network, and only a few frames are in memory.

        Args:
            source: A video file, or the number of a camera (needs the extra ``video``).
            every: Look at frames 0, ``every``, ``2 * every``, ...
            score, head, max_pixels: As for :meth:`predict`.
            batch_size: Frames that go through the network together; None takes 8 for a file on a CUDA device, else 1.

        Returns:
            A generator of results with ``frame`` and ``seconds``. Closing it closes the video and ends the thread that reads it.

        Raises:
            InputError: For a source that is no video, or a score or a head that is out of range.
            MissingExtraError: If OpenCV is not installed.
        """
        if every < 1:
            raise InputError(f"every must be at least 1, got {every}")
        self.conventions_under(score)
        detect = partial(self.predict_arrays, score=score, head=None if head is None else self._checked(head))
        reader = VideoReader(source, max_pixels=max_pixels)
        number = video_batch(self.device, batch_size, is_live=isinstance(source, int))
        return frame_results(watch(reader, detect, every=every, batch_size=number))

    def _predict_tiled(
        self,
        image: "Source",
        tiling: Tiling,
        *,
        score: SmallestScore | None,
        head: HeadChoice | None,
        batch_size: int,
        max_pixels: int | None,
        progress: Progress | None,
    ) -> Result | ImageError:
        def detect_in(tiles: Iterator[NDArray[np.uint8]]) -> Iterator[Result]:
            named = (_NamedImage(file=None, pixels=pixels) for pixels in tiles)
            outcomes = self._detect_all(named, score=score, head=head, batch_size=batch_size)
            return (outcome for outcome in outcomes if isinstance(outcome, Result))

        try:
            return detect_tiled(
                open_source(image, tiling, max_pixels=max_pixels),
                tiling,
                detect_in,
                rule=self.conventions.output,
                categories=self.categories,
                file=str(image) if isinstance(image, str | Path) else None,
                ahead=2 * batch_size,
                progress=progress,
            )
        except ImageError as error:
            return error

    def predict_arrays(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        files: Sequence[str | None] | None = None,
        score: SmallestScore | None = None,
        head: HeadChoice | None = None,
    ) -> list[Result]:
        """Detect in decoded images. Those that have the same padded size go through the network together; images are not padded to a
        common size, because padding changes the network's answer.

        Args:
            images: (H, W, 3) uint8 RGB, any sizes.
            files: Names to put into the results.
            score: Smallest score; None takes the model's own threshold.
            head: As for :meth:`predict`.
        """
        named = (_NamedImage(file=files[row] if files else None, pixels=image) for row, image in enumerate(images))
        outcomes = self._detect_all(named, score=score, head=head, batch_size=max(1, len(images)))
        return [outcome for outcome in outcomes if isinstance(outcome, Result)]

    def _detect_all(
        self, images: "Iterable[_NamedImage | ImageError]", *, score: SmallestScore | None, head: HeadChoice | None, batch_size: int
    ) -> Iterator[Result | ImageError]:
        """One outcome for each image, in order; errors pass through."""
        conventions = self.conventions_under(score)
        is_full = (self.head if head is None else self._checked(head)) == "full"

        def kind(image: _NamedImage | ImageError) -> tuple[int, int] | None:
            return None if isinstance(image, ImageError) else self.padded_hw((image.pixels.shape[0], image.pixels.shape[1]))

        def run(group: list[_NamedImage | ImageError]) -> list[Result | ImageError]:
            images = [image for image in group if isinstance(image, _NamedImage)]
            errors = [image for image in group if isinstance(image, ImageError)]  # never together with images, whose kind is a size
            return [*(self._detect_group(images, conventions, is_full) if images else ()), *errors]

        return in_groups(images, kind, run, size=batch_size)

    def conventions_under(self, score: SmallestScore | None) -> Conventions:
        """The conventions with a caller's own smallest score, or the recommended one; None keeps the model's threshold.

        Raises:
            InputError: If the score is out of range, or below the one that is built into an exported file, or if none is recommended.
        """
        if score is None:
            return self.conventions
        if isinstance(score, str):
            if score != "best":
                raise InputError(f"score must be a number or best, got {shown(score)}")
            score = self.best_score
        if not 0 <= score < 1:
            raise InputError(f"score must be from 0 to below 1, got {score}")
        output = self.conventions.output.model_copy(update={"score_threshold": score, "last_level_score_threshold": None})
        self._require_built_in(output)
        return self.conventions.model_copy(update={"output": output})

    def _require_built_in(self, output: OutputRule) -> None:
        """Refuse what a network that ends with NMS would ignore."""
        if self._built_in is None:
            return
        remedy = f"built into {self.name}; export raw outputs to choose it freely"
        if output.score_threshold < self._built_in.score_threshold:
            raise InputError(f"score {output.score_threshold} is below the {self._built_in.score_threshold} that is {remedy}")
        for name, built_in in self._built_in.model_dump(exclude={"score_threshold", "last_level_score_threshold"}).items():
            if getattr(output, name) != built_in:
                raise InputError(f"{name} {getattr(output, name)} is not the {built_in} that is {remedy}")

    def padded_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Padded size of the input that an image of this size becomes; images with the same one may go through the network together."""
        rule = self.conventions.input
        return padded_size([resized_size(image_hw, rule)], rule.pad_multiple)

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> NetworkInputs:
        """Resize images, pad them to the largest, put them on the device and normalise them."""
        rule = self.conventions.input
        originals_hw = [(image.shape[0], image.shape[1]) for image in images]
        sizes = [resized_size(original_hw, rule) for original_hw in originals_hw]
        size_hw = padded_size(sizes, rule.pad_multiple)
        # A GPU gets the bytes of the image, and resizes them itself.
        uploaded = [to_device(to_tensor(image), self.device) if self.device.type == "cuda" else to_tensor(image) for image in images]
        batch = pad_to([resize(image, size, rule) for image, size in zip(uploaded, sizes, strict=True)], size_hw)
        sizes_hw = to_device(torch.tensor(sizes), self.device)
        normalised = normalise(to_device(batch, self.device), sizes_hw, rule)
        return NetworkInputs(images=normalised, sizes_hw=sizes_hw, originals_hw=originals_hw)

    def network(self, images: Tensor, *, full_head: bool = False) -> Predictions:
        """The network alone: (N, 3, H, W) as :meth:`prepare` gives them -> logits and deltas of all anchors.

        Raises:
            InputError: If the network ends with NMS and gives boxes instead.
        """
        if self.runtime.gives_boxes:
            raise InputError(f"{self.name} gives boxes, not logits and deltas; export it without NMS inside for these")
        return self.runtime.forward(images, full_head=full_head)

    def detections(self, inputs: NetworkInputs, conventions: Conventions, *, full_head: bool = False) -> Detections:
        """Boxes in pixels of the original images, from what :meth:`prepare` gave."""
        if self.runtime.gives_boxes:
            return self._in_original_pixels(self.runtime.detect(inputs.images, inputs.sizes_hw), inputs, conventions)
        if isinstance(self.runtime, TorchRuntime) and has_triton(self.device.type):
            return self._by_graph(self.runtime, inputs, conventions, full_head=full_head)
        return detect(
            self.network(inputs.images, full_head=full_head),
            size_hw=inputs.size_hw,
            sizes_hw=inputs.sizes_hw,
            conventions=conventions,
            images_hw=inputs.originals_hw,
        )

    def _by_graph(self, runtime: TorchRuntime, inputs: NetworkInputs, conventions: Conventions, *, full_head: bool) -> Detections:
        """Network and post-processing without a stop between them."""
        size_hw = inputs.size_hw
        to_image = ToImage.of(conventions, size_hw, inputs.sizes_hw, inputs.originals_hw)
        how = {"full_head": True} if full_head else {}
        lasting = lasting_tensors(size_hw, conventions, self.device)

        def work(network: Callable[..., Predictions], images: Tensor, factors: Tensor, limits_hw: Tensor) -> Tensor:
            assert lasting  # held here as long as a graph holds this function
            scaling = replace(to_image, factors=factors, limits_hw=limits_hw)
            return detect_on_device(network(images, **how), scaling, size_hw=size_hw, conventions=conventions)

        packed = runtime.repeated((conventions, full_head), work, inputs.images, to_image.factors, to_image.limits_hw)
        return unpacked(packed, conventions.output.max_detections)

    def _in_original_pixels(self, found: Detections, inputs: NetworkInputs, conventions: Conventions) -> Detections:
        """Detections of a network that ends with NMS, scaled back, above the caller's own score."""
        last_pixel = torch.tensor([0.0, 0.0, 1.0, 1.0]) * float(conventions.boxes.legacy_plus_one)
        factors = factors_to_images(inputs.originals_hw, inputs.sizes_hw, conventions)[:, None]
        boxes = (found.boxes - last_pixel) * factors + last_pixel
        is_there = torch.arange(found.scores.shape[1]) < found.counts[:, None]
        if conventions.output != self._built_in:  # a caller's own score, not below the one that is built in
            is_there &= found.scores > conventions.output.score_threshold
        return Detections(
            boxes=boxes.where(is_there[..., None], 0.0),
            scores=found.scores.where(is_there, 0.0),
            labels=found.labels.where(is_there, -1),
            counts=is_there.sum(dim=1),
        )

    @torch.inference_mode()
    def _detect_group(self, images: "Sequence[_NamedImage]", conventions: Conventions, is_full: bool) -> list[Result]:
        """All in one batch, or in two halves if the device has too little memory."""
        try:
            found = self.detections(self.prepare([image.pixels for image in images]), conventions, full_head=is_full)
        except torch.OutOfMemoryError:
            found = None  # leaving the handler frees what the failed batch held
        if found is None:
            half = len(images) // 2
            if not half:
                raise InputError(f"{self.device} has too little memory for one image; use the device cpu, or smaller images")
            log.warning("%s has too little memory for %d images at a time; a batch_size of %d is tried", self.device, len(images), half)
            return [*self._detect_group(images[:half], conventions, is_full), *self._detect_group(images[half:], conventions, is_full)]
        boxes, scores, labels = found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()
        return [
            Result(
                file=image.file,
                image=image.pixels,
                boxes=boxes[row, :count],
                scores=scores[row, :count],
                labels=labels[row, :count],
                categories=self.categories,
            )
            for row, (image, count) in enumerate(zip(images, found.counts.tolist(), strict=True))
        ]


def single_images(sources: "Sequence[Source] | Source") -> "list[Source]":
    """Single images, from one or several sources: folders and globs become their files."""
    items = [sources] if isinstance(sources, str | Path | np.ndarray) or not isinstance(sources, Sequence) else sources
    images: list[Source] = []
    for item in items:
        images += find_images([item]) if isinstance(item, str | Path) else [item]
    return images


def readable(outcomes: Iterable[Result | ImageError]) -> list[Result]:
    """The results, if every image could be read.

    Raises:
        ImageError: The first error among the outcomes.
    """
    results = []
    for outcome in outcomes:
        if isinstance(outcome, ImageError):
            raise outcome
        results.append(outcome)
    return results


@dataclass(frozen=True, kw_only=True, eq=False)
class _NamedImage:
    file: str | None
    pixels: NDArray[np.uint8]


def _read(source: Path | _NamedImage, max_pixels: int | None) -> _NamedImage | ImageError:
    if isinstance(source, _NamedImage):
        return source
    try:
        return _NamedImage(file=str(source), pixels=decode(source, max_pixels=max_pixels))
    except ImageError as error:
        return error
