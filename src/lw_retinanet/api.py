"""The Python functions that people call first."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from torch import nn

from lw_retinanet.config import parse_config
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError
from lw_retinanet.heads import HeadPlan
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
    """Make a trained detector cheaper: its finest level gets light towers of its own, fitted to what the old ones say.

    Everything that the plan does not name keeps its very weights, and the levels P4..P7 their very answers. The given model stays as it is.

    ::

        light = lw.lighten(retinanet_resnet50_fpn(weights="DEFAULT"), "lw-narrow", images="photos", fit_steps=1500)
        light = lw.lighten("runs/base", "lw-narrow", images="data/aquarium", fit_steps=1500)

    Args:
        model: torchvision's ``RetinaNet`` or ``FCOS`` (or a subclass: the answer is of the same class, and goes on in the same training
            code); or a :class:`~lw_retinanet.detection.detector.Detector`, a model file or a run folder.
        to: ``lw-v3``, ``lw-narrow``, ``both-v3-bn``, ... (:func:`lw_retinanet.heads.plan_of`), or a plan.
        images: like those the model will see; labels are not used. A folder, a data set (its training split; at most 512 are drawn), or a
            list of files. For a torchvision model the list may also hold PIL pictures, (H, W, 3) uint8 arrays, or (3, H, W) float tensors
            as the model takes them. None uses the old weights alone, which costs much accuracy until the model is trained on.
        fit_steps: of distillation after the closed form; 1500 take minutes on two cores.
        keep_pyramid: leave the convolution that makes the finest map as it is. By default it is fitted too where both branches are new,
            since nothing else reads its map; that costs no arithmetic.
        seed: of what is drawn at random.
        progress: wraps what takes long, for instance to show a bar; gets the items, their number and what is being done.

    Returns:
        The light model: for a torchvision model one of its class, in the same mode and on the same device; else a detector, which holds
        both heads.

    Raises:
        InputError: if this model cannot be lightened so, or the images are of no use, with the reason.
        ImageError: for a picture that cannot be read.
        ConfigError: for an unknown preset, with the nearest known one.
        WeightsError: if a model file cannot be used.
    """
    if isinstance(model, RetinaNet):
        raise InputError("a bare network has no classes to answer with; give its model file or the Detector that lw_retinanet.load returns")
    if isinstance(model, nn.Module):
        from lw_retinanet.interop.torchvision_lighten import lighten_torchvision

        return lighten_torchvision(model, to, images=images, fit_steps=fit_steps, keep_pyramid=keep_pyramid, seed=seed, progress=progress)
    if not isinstance(model, Detector | str | Path):
        raise InputError(f"cannot lighten a {type(model).__name__}; give a torchvision detector, a Detector, a model file or a run folder")
    from lw_retinanet.heads import plan_of
    from lw_retinanet.lightening.calibration_images import find_calibration_images
    from lw_retinanet.lightening.filling import LighteningSettings, checked_steps
    from lw_retinanet.lightening.fitting import FitSettings
    from lw_retinanet.lightening.stages import lighten_detector

    plan = to if isinstance(to, HeadPlan) else plan_of(to)
    steps = checked_steps(fit_steps, has_images=images is not None)
    found = [] if images is None else find_calibration_images(images, seed=seed)
    files = [image for image in found if isinstance(image, Path)]
    if len(files) < len(found):
        raise InputError("for this model images must be files, a folder or a data set; save the images first")
    lightened = lighten_detector(
        model if isinstance(model, Detector) else load(model),
        plan,
        name=to if isinstance(to, str) else "custom",
        files=files,
        settings=LighteningSettings(fit=FitSettings(steps=steps, seed=seed), own_output=not keep_pyramid, seed=seed),
        progress=progress,
    )
    return lightened.detector
