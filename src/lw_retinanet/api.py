"""The Python functions that people call first."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from torch import nn

from lw_retinanet.config import parse_config
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError
from lw_retinanet.heads import HeadPlan
from lw_retinanet.jobs.lighten import lighten_model
from lw_retinanet.jobs.load import open_detector
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.create import create_model

if TYPE_CHECKING:
    from lw_retinanet.lightening.calibration_images import Images
    from lw_retinanet.progress import Progress

ModelT = TypeVar("ModelT", bound=nn.Module)


def create(
    preset: str = "lw-v3",
    *,
    num_classes: int = 80,
    backbone: str = "resnet50",
    backbone_weights: str = "none",
    head_width: int = 256,
    image_size: int = 640,
) -> RetinaNet:
    """Build a detector's network with a random head.

    Args:
        preset: ``retinanet``, ``lw-v1``, ``lw-v2``, ``lw-v3``, ``both-narrow64``, ... (:func:`lw_retinanet.heads.plan_of`).
        num_classes: K.
        backbone: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101``, ``resnet152``, ``mobilenet_v2`` or ``timm:NAME``.
        backbone_weights: ``none``, ``imagenet`` or a file with torchvision's parameter names; with weights the backbone's norms are frozen.
        head_width: channels of the pyramid and of the head's towers.
        image_size: longer side of the pictures it will see, pixels.

    Returns:
        A module: (N, 3, H, W) normalised images -> :class:`~lw_retinanet.structures.Predictions`.

    Raises:
        InputError: if ``num_classes`` or ``image_size`` is out of range.
        ConfigError: for an unknown name, with the nearest known one.
        WeightsError: if backbone weights cannot be had or do not fit.
    """
    if num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    if not 32 <= image_size <= 4096:
        raise InputError(f"image_size must be from 32 to 4096 pixels, got {image_size}")
    model = {"preset": preset, "backbone": backbone, "backbone_weights": backbone_weights, "head_width": head_width}
    config = parse_config({"model": {**model, "init": "fan_in_light"}}, where="create")
    return create_model(config.resolved().model, num_classes=num_classes, image_size=image_size)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "auto"] = "fp32",
    compile: bool = False,  # noqa: A002
) -> Detector:
    """Open a model file, a run folder or an exported file as a detector.

    Args:
        path: a ``.safetensors`` file of this program, a run folder that holds ``model.safetensors``, or what ``lw-retinanet export`` wrote:
            ``.onnx``, OpenVINO's ``.xml``, or a Triton model folder. Exported files run on the CPU unless a CUDA device is named.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        precision: of the network; ``auto`` is the faster one, measured at the first picture.
        compile: run the network through ``torch.compile``: a minute at first for every size of input, faster after that.

    Raises:
        WeightsError: if the file is missing, damaged or not a model of this program.
        MissingExtraError: if what runs an exported file is not installed.
    """
    return open_detector(path, device=device, precision=precision, compile=compile)


@overload
def lighten(
    model: Detector | str | Path,
    to: str | HeadPlan = ...,
    *,
    images: "Images | None" = ...,
    fit_steps: int | None = ...,
    keep_pyramid: bool = ...,
    seed: int = ...,
    progress: "Progress | None" = ...,
) -> Detector: ...


@overload
def lighten(
    model: ModelT,
    to: str | HeadPlan = ...,
    *,
    images: "Images | None" = ...,
    fit_steps: int | None = ...,
    keep_pyramid: bool = ...,
    seed: int = ...,
    progress: "Progress | None" = ...,
) -> ModelT: ...


def lighten(
    model: Detector | str | Path | nn.Module,
    to: str | HeadPlan = "lw-narrow",
    *,
    images: "Images | None" = None,
    fit_steps: int | None = None,
    keep_pyramid: bool = False,
    seed: int = 0,
    progress: "Progress | None" = None,
) -> Detector | nn.Module:
    """Make a trained detector cheaper: its finest level gets light towers, fitted to give the answers of the old ones.

    All weights that the plan does not name stay as they are, and so do the answers of the levels P4 to P7. The given model is not changed.

    A torchvision detector, here a very small one, stays what it is:

    >>> import torch, lw_retinanet as lw
    >>> from torchvision.models.detection import RetinaNet
    >>> from torchvision.models.detection.anchor_utils import AnchorGenerator
    >>> backbone = torch.nn.Conv2d(3, 128, kernel_size=8, stride=8)
    >>> anchors = AnchorGenerator(sizes=((16, 32),), aspect_ratios=((1.0,),))
    >>> model = RetinaNet(backbone, num_classes=3, anchor_generator=anchors, min_size=64, max_size=64)
    >>> images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    >>> light = lw.lighten(model, images=images, fit_steps=2)
    >>> type(light) is type(model)
    True
    >>> sorted(light.eval()(images)[0])
    ['boxes', 'labels', 'scores']

    Args:
        model: torchvision's ``RetinaNet`` or ``FCOS``, or a subclass; or a :class:`~lw_retinanet.detection.detector.Detector`, a model file
            or a run folder.
        to: A preset such as ``lw-narrow``, ``lw-v3`` or ``both-v3-bn`` (:func:`lw_retinanet.heads.plan_of`), or a plan.
        images: Calibration images, which should be like those that the model will see; labels are not read. A folder, a data set (at most
            512 images of its training split are drawn), or a list of files. For a torchvision model the list may also hold PIL images,
            (H, W, 3) uint8 arrays, and (3, H, W) float tensors as the model takes them. Without images the towers are filled from the old
            weights alone, which costs much accuracy until the model is trained again.
        fit_steps: Number of steps of distillation after the closed form. None means 1500, which take minutes on two cores, or 0 if there
            are no images.
        keep_pyramid: Leave the convolution that makes the finest map as it is. By default it is fitted too if both branches are new,
            because then only they read its map. This costs no arithmetic.
        seed: Seed for everything that is drawn at random.
        progress: Passes on images, feature maps and steps, for instance to show a bar.

    Returns:
        For a torchvision model, a model of the same class, in the same mode and on the same device, for the same training code; otherwise
        a detector that has both heads.

    Raises:
        InputError: if this model cannot be lightened, or the images cannot be used; the message says why.
        ImageError: for an image that cannot be read.
        ConfigError: for an unknown preset, with the nearest known one.
        WeightsError: if a model file cannot be used.
    """
    return lighten_model(model, to, images=images, fit_steps=fit_steps, keep_pyramid=keep_pyramid, seed=seed, progress=progress)
