"""torchvision's own trained RetinaNets, by name: downloaded, or from torch's cache."""

from torchvision.models import get_model_weights

from lw_retinanet.errors import WeightsError, nearest
from lw_retinanet.weights.foreign.state_file import ForeignFile, unwrap

HUB = "torchvision:"
NAMES = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2")


def read_hub(name: str) -> ForeignFile:
    """The tensors of torchvision's best weights of this name, checked by their hash when downloaded.

    Raises:
        WeightsError: for another name, or where there is neither a network nor a cached file.
    """
    if name not in NAMES:
        raise WeightsError(f"torchvision has no RetinaNet called {name!r}; known: {', '.join(NAMES)}{nearest(name, NAMES)}")
    try:
        state = get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a checksum that is wrong, a cached file that is damaged: half a dozen types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"cannot get torchvision's weights of {name} ({reason}); download them where there is a network and give the file"
        ) from None
    return unwrap(state, f"{HUB}{name}")
