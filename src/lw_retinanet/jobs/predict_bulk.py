"""Predict on a list of any length: a Parquet part for each chunk, restartable, every image exactly once.

With several processes, each one runs this module as a program, and talks to the caller through its pipes. A child of
:mod:`multiprocessing` would run the script of the caller again.
"""

import itertools
import json
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from queue import Queue
from typing import IO, Any

import torch

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.data.image_list import ImageList, ShardRows, image_folders, need_pyarrow, read_listed
from lw_retinanet.detection.display_score import DISPLAY_SCORE, SmallestScore
from lw_retinanet.detection.table import PredictedRow
from lw_retinanet.devices import Precision
from lw_retinanet.errors import ConfigError, InputError, LwRetinaNetError
from lw_retinanet.exporting.load import model_digest, open_detector
from lw_retinanet.files import output_folder
from lw_retinanet.jobs.bulk_folder import BulkFolder, opened_part
from lw_retinanet.jobs.predict_ray import predict_on_ray
from lw_retinanet.progress import Progress, tracked

CHUNK = 1000
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BulkSettings:
    """How a shard is predicted on; ``score`` to ``max_pixels`` are those of :func:`lw_retinanet.predict`.

    Args:
        model: Model file, run folder, exported file or ``torchvision:NAME``.
        manifest: The list: text with a path or URI a line, or CSV or Parquet with a column ``file``.
        out: Folder of the parts, which all shards may share.
        shard, shards: The number of the shard, from 0, and of all shards.
        chunk: Images of one part: what a killed run does again at most.
        output: Arguments of :meth:`lw_retinanet.Detector.with_output`.

    Raises:
        ConfigError: If a value is out of range.
    """

    model: str
    manifest: str
    out: str
    shard: int = 0
    shards: int = 1
    chunk: int = CHUNK
    score: SmallestScore = DISPLAY_SCORE
    head: str | None = None
    precision: Precision = "fp32"
    device: str = "auto"
    batch_size: int = 1
    max_pixels: int = MAX_PIXELS
    output: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.shard < self.shards:
            raise ConfigError(f"shard {self.shard}/{self.shards}: expected I/N with I from 0 to N - 1, such as 0/{max(1, self.shards)}")
        if self.chunk < 1:
            raise ConfigError(f"chunk must be at least 1, got {self.chunk}")


@dataclass(frozen=True, kw_only=True)
class BulkPredicted:
    """What a shard holds when it is done.

    Args:
        folder: Where the parts are.
        images: The number of images of the shard.
        failed: How many of them cannot be read; their rows hold the reason.
        repeated: Rows that name an image which an earlier row of the shard named.
        empty, unreadable: Rows of the whole list that name nothing, or that are not readable.
    """

    folder: Path
    images: int
    failed: int
    repeated: int
    empty: int
    unreadable: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "folder": str(self.folder)}


def predict_bulk(settings: BulkSettings, *, processes: int = 1, ray: str | None = None, progress: Progress | None = None) -> BulkPredicted:
    """Predict on one shard of a list. What an earlier run, killed or not, has done is not done again.

    Args:
        settings: Model, list, folder, shard and the rest.
        processes: Processes of this machine that share the shard.
        ray: Address of a Ray cluster that does the work instead; see :func:`~lw_retinanet.jobs.predict_ray.predict_on_ray`.
        progress: Shows how many images are done.

    Raises:
        InputError: If the list cannot be used, or the folder holds parts of another model, list or settings.
        InUseError: If another process works on the shard.
        MissingExtraError: If pyarrow is not installed.
        DiskFullError: If the disk is full. The parts until then stay.
    """
    need_pyarrow("prediction on a list")
    if processes < 1 or (ray and processes > 1):
        raise ConfigError(f"processes must be at least 1, and 1 on a Ray cluster, got {processes}")
    output_folder(Path(settings.out))
    images = ImageList.open(settings.manifest)
    rows = ShardRows(images=images, shard=settings.shard, shards=settings.shards)
    folder = BulkFolder(path=Path(settings.out), shard=settings.shard, shards=settings.shards, record=_record(settings, images))
    with folder.locked():
        folder.write_record(None)
        if ray is not None:
            work = predict_on_ray(asdict(settings), folder, rows, ray)
        else:
            work = _one_process(settings, folder, rows) if processes == 1 else _in_processes(settings, folder, images, processes)
        for _ in tracked(work, -(-images.num_rows // settings.shards), "predict", progress):
            pass
        finished = _count(folder, rows, settings.chunk)
        folder.write_record(finished)
    return BulkPredicted(folder=folder.path, **{name: value for name, value in finished.items() if name != "chunks"})


def _one_process(settings: BulkSettings, folder: BulkFolder, rows: ShardRows) -> Iterator[None]:
    return (None for done in _predict_missing(settings, folder, rows) for _ in range(done))


def _predict_missing(settings: BulkSettings, folder: BulkFolder, rows: ShardRows, process: int = 0, processes: int = 1) -> Iterator[int]:
    """Write the parts that are not there, of every chunk or of those of one process; yields the number of images in each chunk."""
    begun: deque[tuple[int, list[str]]] = deque()

    def missing() -> Iterator[str]:
        for number, files in enumerate(_chunks(rows, settings.chunk)):
            if number % processes == process and not folder.part(number).exists():
                begun.append((number, files))
                yield from files

    names = missing()
    first = next(names, None)
    if first is None:
        return
    detector = open_detector(settings.model, head=settings.head, device=settings.device, precision=settings.precision)
    detector = detector.with_output(**settings.output)
    read = partial(read_listed, folders=image_folders(settings.manifest), max_pixels=settings.max_pixels)
    gathered: list[PredictedRow] = []
    for outcome in detector.predict_each(itertools.chain([first], names), read, score=settings.score, batch_size=settings.batch_size):
        number, files = begun[0]
        gathered.append(PredictedRow.of(files[len(gathered)], outcome))
        if len(gathered) == len(files):
            folder.write_part(number, gathered, detector.categories)
            begun.popleft()
            gathered = []
            yield len(files)


def _chunks(rows: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(rows)
    while files := list(itertools.islice(iterator, size)):
        yield files


def _count(folder: BulkFolder, rows: ShardRows, size: int) -> dict[str, int]:
    """Check that every chunk has its part with all its rows, and count them."""
    chunks = images = failed = 0
    for number, files in enumerate(_chunks(rows, size)):
        with opened_part(folder.part(number)) as part:
            if part.metadata.num_rows != len(files):
                raise InputError(f"{folder.part(number)} holds {part.metadata.num_rows} rows instead of {len(files)}; remove it, and go on")
            failed += len(files) - part.read(columns=["error"]).column(0).null_count
        chunks, images = chunks + 1, images + len(files)
    return {"chunks": chunks, "images": images, "failed": failed, **rows.counts}


def _record(settings: BulkSettings, images: ImageList) -> dict[str, Any]:
    """What must be equal in all parts of a folder. The device and the batch are left out: they change the last digits only."""
    asked = {name: getattr(settings, name) for name in ("shards", "chunk", "score", "head", "precision", "max_pixels")}
    return {"model": model_digest(settings.model), "list": images.sha256, **asked, **settings.output}


def _in_processes(settings: BulkSettings, folder: BulkFolder, images: ImageList, processes: int) -> Iterator[None]:
    """The same in several processes, each of which takes every so manyth chunk."""
    messages: Queue[tuple[int, dict[str, Any] | None]] = Queue()
    plan = {"settings": asdict(settings), "record": dict(folder.record), "images": asdict(images), "processes": processes}
    errors: list[LwRetinaNetError] = []
    with ExitStack() as stack:
        started = [_started({**plan, "process": number}, stack) for number in range(processes)]
        for number, process in enumerate(started):
            threading.Thread(target=_listen, args=(number, process.stdout, messages), daemon=True).start()
        running = set(range(processes))
        while running:
            number, message = messages.get()
            if message is None:
                running.remove(number)
                if code := started[number].wait():
                    errors.append(LwRetinaNetError(f"process {number} of {processes} ended with {code}; run the same again, which goes on"))
            elif "error" in message:
                errors.insert(0, (InputError if message["is_input"] else LwRetinaNetError)(message["error"]))
            else:
                yield from itertools.repeat(None, message["images"])
    if errors:
        raise errors[0]


def _started(plan: dict[str, Any], stack: ExitStack) -> "subprocess.Popen[bytes]":
    # A process group of its own, since Ctrl-C is for the caller, who then ends this process.
    group = 0 if os.name == "posix" else None
    command = [sys.executable, "-m", __spec__.name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, process_group=group)
    stack.enter_context(process)
    stack.callback(process.kill)  # it has ended by itself unless this is left early
    assert process.stdin is not None
    with suppress(OSError):  # it has ended already: this is noticed when it is listened to
        process.stdin.write(json.dumps(plan).encode() + b"\n")
    return process


def _listen(number: int, stream: IO[bytes], messages: "Queue[tuple[int, dict[str, Any] | None]]") -> None:
    for line in stream:
        messages.put((number, json.loads(line)))
    messages.put((number, None))


def main() -> None:
    """Be one of several processes: read the plan from the input, and end when the input does, since the caller is gone then."""
    plan = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(1)), daemon=True).start()
    settings, processes, process = BulkSettings(**plan["settings"]), plan["processes"], plan["process"]
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    if settings.device in ("auto", "cuda") and torch.cuda.is_available():
        settings = BulkSettings(**{**asdict(settings), "device": f"cuda:{process % torch.cuda.device_count()}"})
    folder = BulkFolder(path=Path(settings.out), shard=settings.shard, shards=settings.shards, record=plan["record"])
    rows = ShardRows(images=ImageList(**plan["images"]), shard=settings.shard, shards=settings.shards)
    try:
        for images in _predict_missing(settings, folder, rows, process, processes):
            _tell({"images": images})
    except LwRetinaNetError as error:
        _tell({"error": str(error), "is_input": isinstance(error, InputError)})
    os._exit(0)  # the thread that reads the input would hold the end up


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
