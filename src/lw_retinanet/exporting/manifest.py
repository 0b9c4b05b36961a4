"""What an exported file says about itself: the model's record, what was done to it, and a seal that shows whether either was altered."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, NonNegativeInt, ValidationError

from lw_retinanet import __version__
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.model_file import ModelRecord

KEY = "lw_retinanet"
SEAL_KEY = "lw_retinanet_sha256"

Outputs = Literal["raw", "detections"]
ExportPrecision = Literal["fp32", "bf16", "int8"]
ExportedHead = Literal["only", "light", "full"]


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """Travels inside the file as JSON.

    Args:
        format: Version of this record.
        version: Version of the package that wrote it.
        kind: Runtime that the file is for, see :attr:`lw_retinanet.exporting.target.ExportedRuntime.kind`.
        outputs: ``raw`` logits and deltas, or ``detections`` after NMS.
        precision: ``int8``: convolutions are quantised, except ``kept_layers``; ``bf16``: the runtime is told to compute so.
        half_weights: Whether weights are stored in fp16.
        head: Which head of a lightened model this is; ``only`` if the model had one.
        kept_layers: Convolutions that int8 left alone.
        record: Classes, original ids, conventions (preprocessing, anchors, thresholds) and notes, as in the model file.
        agreement: How the file's answers were compared with the model's, and the differences.
        accuracy: AP before and after quantisation, if that was measured.
        network_bytes: Size of what ``network_sha256`` covers.
        network_sha256: Digest of the network, which ties this record to it.
    """

    format: Literal[1] = 1
    version: str = __version__
    kind: str
    outputs: Outputs
    precision: ExportPrecision
    half_weights: bool = False
    head: ExportedHead
    kept_layers: tuple[str, ...] = ()
    record: ModelRecord
    agreement: dict[str, Any] = {}
    accuracy: dict[str, Any] | None = None
    network_bytes: NonNegativeInt = 0
    network_sha256: str = ""


def sealed(manifest: Manifest) -> tuple[str, str]:
    """JSON in ASCII on one line, and its checksum."""
    text = json.dumps(manifest.model_dump(mode="json"), separators=(",", ":"))
    return text, _checksum(text)


def opened(text: str | None, seal: str | None, *, where: Path) -> Manifest:
    """The manifest from what :func:`sealed` returned.

    Raises:
        WeightsError: If there is none, or it was altered.
    """
    if not text:
        raise WeightsError(f"{where} was not exported by this program, or lost its metadata; make it anew with `lw-retinanet export`")
    if seal != _checksum(text):
        raise WeightsError(f"the metadata of {where} was altered after the export; make the file anew with `lw-retinanet export`")
    try:
        return Manifest.model_validate(json.loads(text))
    except (ValidationError, ValueError, RecursionError):
        raise WeightsError(f"the metadata of {where} is of another version of this program; update it or export anew") from None


def require_network(manifest: Manifest, network_sha256: str, *, where: Path) -> None:
    """Refuse a network other than the one that the manifest was written for.

    Raises:
        WeightsError: If it is another one.
    """
    if manifest.network_sha256 != network_sha256:
        raise WeightsError(
            f"the network in {where} is not the one that was exported with this metadata: the file was changed or mixed with another one; "
            "make it anew with `lw-retinanet export`"
        )


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
