"""COCO scoring beside the caller, in a process of its own that is spoken to through its pipes.

It is this module as a program rather than a child of :mod:`multiprocessing`, which would run the caller's script anew to make one: a script
without the usual guard would start its training twice.
"""

import io
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Category, Records
from lw_retinanet.errors import DataError, LwRetinaNetError
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detections import DetectionTable

Arrays = Mapping[str, NDArray[Any]]
_LENGTH = 8  # bytes that say how many follow
log = logging.getLogger(__name__)


class ScoringProcess:
    """Scores detections while the caller goes on; a context manager, at whose end the process ends, too.

    The process starts at the first detections and gets the ground truth once. If it cannot be started or dies, the scores are computed in a
    thread of the caller, and a line of the log says so.

    Args:
        records: the ground truth.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        # It waits for the answers, so that the caller need not; detections wait here for those before them.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._process: subprocess.Popen[bytes] | None = None
        self._is_lost = False
        self._closing = threading.Event()

    def submit(self, detections: DetectionTable) -> Future[dict[str, Any]]:
        """The twelve numbers and the number of images, as in ``Metrics.as_dict()``, when they are there; or a ``DataError``."""
        return self._thread.submit(self._score, detections)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End, and forget what is not scored yet."""
        self._closing.set()
        process = self._process
        if process is not None:
            process.kill()  # it has nothing to lose
        self._thread.shutdown(cancel_futures=True)
        process = self._process
        if process is not None:
            process.kill()
            process.wait()
            _close(process)

    def _score(self, detections: DetectionTable) -> dict[str, Any]:
        answer = None if self._is_lost else self._asked(detections)
        if self._closing.is_set():
            raise DataError("the run has ended")
        if answer is None:
            return _numbers(self.records, detections)
        if "error" in answer:
            raise DataError(answer["error"])
        return answer

    def _asked(self, detections: DetectionTable) -> dict[str, Any] | None:
        """What the process says; None if there is none any more."""
        try:
            if self._process is None:
                command = [sys.executable, "-m", __spec__.name]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                _send(self._process.stdin, _records_as_arrays(self.records))
            _send(self._process.stdin, vars(detections))
            answer = _receive(self._process.stdout)
        except OSError:
            answer = None
        if answer is not None:
            found: dict[str, Any] = json.loads(str(answer["json"]))
            return found
        self._is_lost = True
        if not self._closing.is_set():
            log.warning("the scoring process has ended; scores are computed in the training process from now on")
        return None


def main() -> None:
    """Answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who then ends this process
    given = _receive(sys.stdin.buffer)
    if given is None:
        return
    records = _records_from_arrays(given)
    while (table := _receive(sys.stdin.buffer)) is not None:
        try:
            answer = _numbers(records, DetectionTable(**table))
        except LwRetinaNetError as error:
            answer = {"error": str(error)}
        except Exception as error:  # to be told of over there, where somebody reads it
            answer = {"error": f"{type(error).__name__}: {error}"}
        _send(sys.stdout.buffer, {"json": np.array(json.dumps(answer))})


def _numbers(records: Records, detections: DetectionTable) -> dict[str, Any]:
    return {name: value for name, value in evaluate(records, detections).as_dict().items() if name != "per_class"}


def _records_as_arrays(records: Records) -> Arrays:
    """What scoring reads of them."""
    arrays = {field.name: value for field in fields(records) if isinstance(value := getattr(records, field.name), np.ndarray)}
    ids = [one if isinstance(one, str) else int(one) for one in records.image_ids]
    names = [[category.id, category.name] for category in records.categories]
    return {**arrays, "image_ids": np.array(json.dumps(ids)), "categories": np.array(json.dumps(names))}


def _records_from_arrays(arrays: Arrays) -> Records:
    values: dict[str, Any] = dict(arrays)
    values["image_ids"] = json.loads(str(arrays["image_ids"]))
    values["categories"] = tuple(Category(id=number, name=name) for number, name in json.loads(str(arrays["categories"])))
    return Records(root=Path(), file_names=[""] * len(values["image_ids"]), **values)


def _send(stream: IO[bytes] | None, arrays: Arrays) -> None:
    assert stream is not None
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    stream.write(buffer.tell().to_bytes(_LENGTH, "little"))
    stream.write(buffer.getbuffer())
    stream.flush()


def _receive(stream: IO[bytes] | None) -> dict[str, NDArray[Any]] | None:
    """None where the other end is gone."""
    assert stream is not None
    length = int.from_bytes(stream.read(_LENGTH), "little")
    content = stream.read(length)
    if not length or len(content) < length:
        return None
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        try:
            if stream is not None:
                stream.close()
        except OSError:  # what was still to be written has no reader any more
            continue


if __name__ == "__main__":
    main()
