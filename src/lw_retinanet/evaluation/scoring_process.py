"""COCO scoring in a process of its own, while the caller goes on.

The process runs this module as a program and talks to the caller through its pipes. A child of :mod:`multiprocessing` would run the script
of the caller again, so a script without the usual ``__main__`` guard would start its training twice.
"""

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Category, Records
from lw_retinanet.errors import DataError, LwRetinaNetError
from lw_retinanet.evaluation.best_score import score_metrics
from lw_retinanet.evaluation.detections import DetectionTable

_LENGTH = 8  # bytes in front of a message that say how long it is
log = logging.getLogger(__name__)


class ScoringProcess:
    """Scores detections in another process. Used as a context manager, which ends the process.

    The process starts with the first detections and gets the ground truth once. If it cannot be started, or if it dies, the scores are
    computed in a thread of the caller, and the log says so.

    Args:
        records: The ground truth.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        # This thread waits for the answers, so the caller does not have to. Further detections queue here.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._process: subprocess.Popen[bytes] | None = None
        self._is_lost = False
        self._closing = threading.Event()

    def submit(self, detections: DetectionTable) -> Future[dict[str, Any]]:
        """A future of what ``Metrics.as_dict()`` gives, with ``best_score`` in place of ``per_class``. It may raise a ``DataError``."""
        return self._thread.submit(self._score, detections)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process and drop what is not scored yet."""
        self._closing.set()
        if self._process is not None:
            self._process.kill()  # it holds nothing that must be saved, and the thread may be waiting for it
        self._thread.shutdown(cancel_futures=True)
        if self._process is not None:  # the thread may have started it in the meantime
            self._process.kill()
            self._process.wait()
            _close(self._process)

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
        """The answer of the process, or None if the process is gone."""
        try:
            if self._process is None:
                command = [sys.executable, "-m", __spec__.name]
                # A process group of its own, since Ctrl-C is for the caller, who then ends this process.
                group = 0 if os.name == "posix" else None
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=group)
                _send(self._process.stdin, _records_as_arrays(self.records))
            _send(self._process.stdin, vars(detections))
            assert self._process.stdout is not None
            answer: dict[str, Any] | None = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):  # ValueError: an empty or half line, since the process has ended
            answer = None
        if answer is None:
            self._is_lost = True
            if not self._closing.is_set():
                log.warning("the scoring process has ended; scores are computed in the training process from now on")
        return answer


def main() -> None:
    """Read the ground truth, then answer each table of detections until the input ends."""
    given = _receive(sys.stdin.buffer)
    if given is None:
        return
    records = _records_from_arrays(given)
    while (table := _receive(sys.stdin.buffer)) is not None:
        try:
            answer = _numbers(records, DetectionTable(**table))
        except LwRetinaNetError as error:
            answer = {"error": str(error)}
        except Exception as error:  # the caller reports it
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _numbers(records: Records, detections: DetectionTable) -> dict[str, Any]:
    metrics = score_metrics(records, detections)
    numbers = {name: value for name, value in metrics.as_dict().items() if name != "per_class"}
    return {**numbers, "best_score": metrics.best_score}


def _records_as_arrays(records: Records) -> dict[str, NDArray[Any]]:
    """What scoring reads of the records."""
    arrays = {field.name: value for field in fields(records) if isinstance(value := getattr(records, field.name), np.ndarray)}
    ids = [one if isinstance(one, str) else int(one) for one in records.image_ids]
    names = [[category.id, category.name] for category in records.categories]
    return {**arrays, "ids_and_categories": np.array(json.dumps([ids, names]))}


def _records_from_arrays(arrays: dict[str, Any]) -> Records:
    ids, names = json.loads(str(arrays.pop("ids_and_categories")))
    categories = tuple(Category(id=number, name=name) for number, name in names)
    return Records(root=Path(), file_names=[""] * len(ids), image_ids=ids, categories=categories, **arrays)


def _send(stream: IO[bytes] | None, arrays: Mapping[str, NDArray[Any]]) -> None:
    assert stream is not None
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    stream.write(buffer.tell().to_bytes(_LENGTH, "little"))
    stream.write(buffer.getbuffer())
    stream.flush()


def _receive(stream: IO[bytes]) -> dict[str, NDArray[Any]] | None:
    """The next message, or None if the other end is gone."""
    length = int.from_bytes(stream.read(_LENGTH), "little")
    content = stream.read(length)
    if not length or len(content) < length:
        return None
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # what was still to be written has no reader any more
                stream.close()


if __name__ == "__main__":
    main()
