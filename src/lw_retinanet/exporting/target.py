"""What an export target is: a class that writes a network to one kind of file, and runs it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from lw_retinanet.devices import Precision
from lw_retinanet.errors import OutputError
from lw_retinanet.exporting.graph import ExportGraph
from lw_retinanet.exporting.manifest import ExportPrecision, Manifest
from lw_retinanet.structures import Detections, Predictions

Feature = Literal["bf16", "int8", "end_to_end", "half_weights", "symmetric"]


class CalibrationInputs(Protocol):
    """What the ranges of int8 are measured on: the values of a network's inputs, one image at a time."""

    def __len__(self) -> int: ...

    def inputs(self, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        """For each image, the values of the inputs with these names. May be called several times."""
        ...


class ExportedRuntime(ABC):
    """One export target; an instance runs one network for a detector.

    A subclass in a file of its own and a row in :data:`lw_retinanet.exporting.targets.TARGETS` make a new target. The class methods
    write a file: :meth:`make`, :meth:`quantise`, :meth:`write`, :meth:`seal`, in this order. A *network* is whatever :meth:`make` returns,
    for instance ``onnx.ModelProto``.

    Args:
        network: The network, or the path of its file.
        manifest: What the file says, or will say, about itself.
        precision: What the runtime computes in; ``int8`` networks may compute what is not quantised in bf16.
    """

    kind: ClassVar[str]
    """Name of the runtime in the manifest."""
    suffix: ClassVar[str]
    """Suffix of the file."""
    weights_suffix: ClassVar[str | None] = None
    """Suffix of a second file beside it, if there is one."""
    companions: ClassVar[tuple[str, ...]] = ()
    """Further files in the output folder, which :meth:`complete` writes."""
    extra: ClassVar[str] = ""
    """Extra of this project that installs what the target needs."""
    features: ClassVar[frozenset[Feature]] = frozenset()
    """What the target can do beside fp32 with raw outputs."""
    quantiser: ClassVar[str] = ""
    """Package that :meth:`quantise` needs."""
    always_gives_boxes: ClassVar[bool] = False
    """Whether the network is always written with NMS inside."""

    inputs: tuple[str, ...]
    """Names of the network's inputs."""

    def __init__(self, network: Any, manifest: Manifest, *, precision: ExportPrecision = "fp32") -> None:
        self.device = torch.device("cpu")  # where images are prepared and boxes decoded, wherever the network runs
        self.precision: Precision = "bf16" if precision == "bf16" else "fp32"
        self.manifest = manifest

    @property
    def gives_boxes(self) -> bool:
        """Whether the network ends with NMS."""
        return self.manifest.outputs == "detections"

    @property
    def chosen_precision(self) -> Literal["fp32", "bf16"]:
        """What the network computes in where it is not int8."""
        return "bf16" if self.precision == "bf16" else "fp32"

    @abstractmethod
    def run(self, *inputs: Tensor) -> tuple[NDArray[Any], ...]:
        """All outputs, in the order of the network.

        Raises:
            InputError: For a size that the file or the memory cannot take.
        """

    def forward(self, images: Tensor, *, full_head: bool = False) -> Predictions:
        """Logits and deltas; an exported network holds one head, whatever is asked for."""
        logits, deltas = (torch.from_numpy(values) for values in self.run(images))
        return Predictions(logits, deltas)

    def detect(self, images: Tensor, sizes_hw: Tensor) -> Detections:
        """Boxes of a network that ends with NMS, in pixels of the padded input."""
        boxes, scores, labels, counts = (torch.from_numpy(values) for values in self.run(images, sizes_hw))
        return Detections(boxes=boxes, scores=scores, labels=labels, counts=counts)

    @classmethod
    @abstractmethod
    def make(cls, graph: ExportGraph) -> Any:
        """A graph as a network of this target, with dynamic batch, height and width, and the graph's names.

        Raises:
            MissingExtraError: If a package is not installed.
            ExportError: If an operation has no counterpart.
        """

    @classmethod
    def quantise(
        cls, network: Any, calibration: CalibrationInputs, *, keep: Sequence[str] = (), scratch: Path, symmetric: bool = False
    ) -> Any:
        """An int8 copy: weights with one scale for each output channel, activations with one for each tensor.

        Args:
            network: Not changed.
            calibration: Images that the ranges of the activations are measured on.
            keep: Convolutions (:meth:`layers`) that stay as they are.
            scratch: Folder for files that later calls with the same network and images may use again.
            symmetric: Ranges around zero, for targets with the feature of this name.

        Raises:
            MissingExtraError: If :attr:`quantiser` is not installed.
            ExportError: If the quantisation fails.
        """
        raise NotImplementedError

    @classmethod
    def layers(cls, network: Any) -> list[str]:
        """Names of a network's convolutions, in the order in which they run. Needed for int8 only."""
        raise NotImplementedError

    @classmethod
    def tapped(cls, network: Any, layers: Sequence[str]) -> Any:
        """A copy that returns the outputs of these convolutions instead of its own. Needed for int8 only."""
        raise NotImplementedError

    @classmethod
    @abstractmethod
    def write(cls, network: Any, path: Path, *, half_weights: bool = False) -> None:
        """Write a file without manifest.

        Raises:
            OutputError: If it cannot be written.
        """

    @classmethod
    @abstractmethod
    def seal(cls, path: Path, manifest: Manifest) -> Manifest:
        """Put the manifest into the file that :meth:`write` made; returns it as written, with size and digest of the network."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, *, device: str = "auto", precision: Precision = "fp32") -> Self:
        """Open a file that was sealed.

        Args:
            path: The file that :meth:`find` names.
            device: As for :func:`lw_retinanet.load`.
            precision: As for :func:`lw_retinanet.load`; a target takes what it has.

        Raises:
            WeightsError: If the file is damaged, not from this program, or altered.
            InputError: For a device or a precision that the runtime does not have.
            MissingExtraError: If the runtime is not installed.
        """

    @classmethod
    def find(cls, path: Path) -> Path | None:
        """The file that ``path`` means, if it is one of this target; None for anything else."""
        return path if path.suffix.lower() == cls.suffix and not path.is_dir() else None

    @classmethod
    def place(cls, out: Path) -> Path:
        """The file to write for an output path.

        Raises:
            OutputError: If the path will not do.
        """
        if out.suffix != cls.suffix:
            raise OutputError(f"{out}: a file of format {cls.kind} ends in {cls.suffix}")
        if out.is_dir():
            raise OutputError(f"{out} is a folder; name a file in it")
        return out

    @classmethod
    def complete(cls, out: Path, network: Any) -> None:
        """Write the :attr:`companions`."""
        assert not cls.companions
