"""One detector behind many requests: admission, decoding in a pool, batches, deadlines."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch

from lw_retinanet.detection.detector import Detector
from lw_retinanet.serving.batching import Batcher
from lw_retinanet.serving.engine import DetectionEngine, NotFiniteError, PreparedImage
from lw_retinanet.serving.metrics import ServiceMetrics
from lw_retinanet.serving.refusal import RefusedError
from lw_retinanet.serving.request_body import BodyReader, ClientGoneError, Receive, image_bytes
from lw_retinanet.serving.settings import ServeSettings

_NEWEST_WEIGHT = 0.2  # of the newest batch in the running mean of the seconds of an image
_SHARE_OF_DEADLINE = 0.8  # a request is accepted if it is expected to be answered within this share of its deadline


class DetectionService:
    """What the HTTP routes call.

    Args:
        open_detector: Opens the model; called in the worker thread, while the service already says that it is alive.
        settings: Limits.

    Attributes:
        state: Requests are accepted in the state ``ready`` only.
    """

    def __init__(self, open_detector: Callable[[], Detector], settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = ServiceMetrics()
        self.bodies = BodyReader(settings)
        self.state: Literal["loading", "ready", "draining"] = "loading"
        self.admitted = 0
        self._open_detector = open_detector
        self._engine: DetectionEngine | None = None
        self._seconds_per_image = 0.0
        threads, cpus = torch.get_num_threads(), os.cpu_count() or 1
        # Each thread has its own number of OpenMP threads: many in the worker, and one in each thread of the pool.
        self._worker = ThreadPoolExecutor(1, "detector", initializer=torch.set_num_threads, initargs=(threads,))
        self._pool = ThreadPoolExecutor(max(1, min(8, cpus // 2)), "decoder", initializer=torch.set_num_threads, initargs=(1,))
        self._prepared_slots = asyncio.Semaphore(2 * settings.max_batch)
        self._batcher = Batcher[PreparedImage, dict[str, Any]](
            lambda group: self.engine.detect(group),
            kind=lambda image: image.kind,
            worker=self._worker,
            size=settings.max_batch,
            wait_s=settings.batch_wait_ms / 1000,
            on_run=self._count_batch,
        )

    @property
    def engine(self) -> DetectionEngine:
        """The detector, once it is loaded.

        Raises:
            RefusedError: 503 before that.
        """
        if self._engine is None:
            raise RefusedError(503, "loading", "the model is being loaded; try again", retry_after=1)
        return self._engine

    async def load(self) -> None:
        """Open the model and let it answer examples; then the service is ready.

        Raises:
            InputError: If the model cannot be opened, or its answer is not finite.
        """

        def load() -> DetectionEngine:
            engine = DetectionEngine(self._open_detector(), max_pixels=self.settings.max_pixels)
            engine.warm_up(self.settings.score)
            return engine

        self._engine = await asyncio.get_running_loop().run_in_executor(self._worker, load)
        self._seconds_per_image = max(self._engine.ms.values()) / 1000
        if self.state == "loading":
            self.state = "ready"

    async def run_forever(self) -> None:
        """Answer what was accepted, until cancelled."""
        await self._batcher.run_forever()

    def drain(self) -> None:
        """Accept nothing any more; what was accepted is still answered."""
        self.state = "draining"
        self.bodies.hurry(5.0)

    def close(self) -> None:
        """Stop the threads when their present work ends."""
        for pool in (self._pool, self._worker):
            pool.shutdown(wait=False, cancel_futures=True)

    async def detect(self, receive: Receive, headers: dict[str, str], *, score: float | None, head: str | None) -> bytes:
        """Answer one request with the JSON of its detections.

        Raises:
            RefusedError: For everything else that the client is told.
            ClientGoneError: If there is nobody to tell.
        """
        self._require_room()
        body = await self.bodies.receive(receive, headers)
        try:
            self._require_room()
            self.admitted += 1
            self.metrics.admitted.set(self.admitted)
            try:
                content_type = headers.get("content-type", "")
                smallest = self.settings.score if score is None else score
                work = asyncio.create_task(self._answer(body, content_type, smallest, head))
                return await self._first(work, receive)
            finally:
                self.admitted -= 1
                self.metrics.admitted.set(self.admitted)
        finally:
            self.bodies.release(body)

    def _require_room(self) -> None:
        """Refuse a request that could not be answered within its deadline."""
        if self.state != "ready":
            raise RefusedError(503, self.state, f"the service is {self.state}; try again", retry_after=1)
        expected = self.admitted * self._seconds_per_image
        if self.admitted >= self.settings.queue or expected > _SHARE_OF_DEADLINE * self.settings.deadline_s:
            raise RefusedError(503, "busy", "too many requests wait; try again", retry_after=max(1, round(expected / 2)))

    async def _first(self, work: asyncio.Task[bytes], receive: Receive) -> bytes:
        """The answer, unless the deadline passes or the client goes away before."""
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), timeout=self.settings.deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise ClientGoneError
            raise RefusedError(504, "deadline", f"no answer within {self.settings.deadline_s:g} seconds; try again")
        finally:
            for task in (work, gone):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _answer(self, body: bytes, content_type: str, score: float, head: str | None) -> bytes:
        engine = self.engine
        loop = asyncio.get_running_loop()

        def prepare() -> PreparedImage:
            return engine.prepare(image_bytes(body, content_type), score=score, head=head)

        async with self._prepared_slots:
            prepared = await loop.run_in_executor(self._pool, prepare)
            try:
                answer = await self._batcher.submit(prepared)
            except NotFiniteError as error:
                raise RefusedError(500, "not_finite", str(error)) from error
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, MemoryError) or "memory" in str(error).lower():
                    raise RefusedError(503, "out_of_memory", "no memory for this image at the moment; try again", retry_after=1) from error
                raise
        return json.dumps(answer, allow_nan=False).encode()

    def _count_batch(self, number: int, seconds: float) -> None:
        self.metrics.batches.observe(number)
        self.metrics.busy.inc(seconds)
        self._seconds_per_image += _NEWEST_WEIGHT * (seconds / number - self._seconds_per_image)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
