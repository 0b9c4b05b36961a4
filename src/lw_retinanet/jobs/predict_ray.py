"""Predict on a list with an actor pool of Ray Data: the same parts as :mod:`lw_retinanet.jobs.predict_bulk` writes."""

import itertools
import logging
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lw_retinanet.data.image_list import ShardRows, image_folders
from lw_retinanet.errors import InputError, LwRetinaNetError, MissingExtraError, printable
from lw_retinanet.interop.ray import Predict
from lw_retinanet.jobs.bulk_folder import BulkFolder

WINDOW = 1000  # chunks of one data set, whose file names the driver holds
CONNECT_SECONDS = 10


class PredictChunk:
    """Writes the part of each chunk, as an actor. A chunk that Ray repeats, since a worker died, gives the same part again.

    Args:
        predict: Arguments of :class:`~lw_retinanet.interop.ray.Predict`.
        folder: Arguments of :class:`~lw_retinanet.jobs.bulk_folder.BulkFolder`.
    """

    def __init__(self, predict: dict[str, Any], folder: dict[str, Any]) -> None:
        self.predict = Predict(**predict)
        self.folder = BulkFolder(**folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The number of images of each chunk."""
        for chunk, files in zip(batch["chunk"], batch["files"], strict=True):
            if not self.folder.part(int(chunk)).exists():
                self.folder.write_part(int(chunk), self.predict.rows(files), self.predict.detector.categories)
        return {"images": [len(files) for files in batch["files"]]}


def predict_on_ray(settings: Mapping[str, Any], folder: BulkFolder, rows: ShardRows, address: str) -> Iterator[None]:
    """Write the parts that are not there, on a cluster; yields once for each image.

    Args:
        settings: Those of :class:`~lw_retinanet.jobs.predict_bulk.BulkSettings`. Every node must find the model, the images
            and the folder.
        folder, rows: Of the shard.
        address: Of the cluster, such as ``auto`` or ``ray://head:10001``; ``local`` starts one on this machine.

    Raises:
        MissingExtraError: If Ray is not installed.
        InputError: If the cluster cannot be reached, or has another version of Ray or Python.
    """
    ray = _connected(address)
    gpus = 1 if settings["device"].startswith("cuda") or (settings["device"] == "auto" and ray.cluster_resources().get("GPU")) else 0
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1))))
    predict = {name: settings[name] for name in ("score", "head", "precision", "device", "batch_size", "max_pixels", "output")}
    model = Path(settings["model"])
    predict["model"] = str(model.absolute()) if model.exists() else settings["model"]
    predict["folders"] = [str(place.absolute()) for place in image_folders(settings["manifest"])]
    made = asdict(folder) | {"path": folder.path.absolute(), "record": dict(folder.record)}
    try:
        for window in _windows(rows, folder, settings["chunk"]):
            tasks = ray.data.from_items(window, override_num_blocks=len(window))
            counted = tasks.map_batches(
                PredictChunk, fn_constructor_args=[predict, made], compute=pool, batch_size=1, num_gpus=gpus, num_cpus=None if gpus else 1
            )
            for row in counted.iter_rows():
                yield from itertools.repeat(None, row["images"])
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, LwRetinaNetError):
            raise cause from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]  # the lines before it are a traceback
        raise LwRetinaNetError(f"Ray stopped ({printable(reason)}); run the same again, which goes on") from error
    finally:
        ray.shutdown()


def _windows(rows: ShardRows, folder: BulkFolder, size: int) -> Iterator[list[dict[str, Any]]]:
    """Chunks whose part is missing, some at a time."""
    iterator = iter(rows)
    chunks = enumerate(iter(lambda: list(itertools.islice(iterator, size)), []))
    missing = ({"chunk": number, "files": files} for number, files in chunks if not folder.part(number).exists())
    while window := list(itertools.islice(missing, WINDOW)):
        yield window


def _connected(address: str) -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("prediction on a cluster needs Ray; install it with: pip install 'lw-retinanet[ray]'") from None
    try:
        if place := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address):  # Ray itself tries for minutes
            socket.create_connection((place[1], int(place[2])), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:  # RuntimeError: another version of Ray or Python
        raise InputError(
            f"Ray at {address}: {printable(' '.join(str(error).split()))[:400]}; check the address, and install the cluster's versions here"
        ) from None
    return ray
