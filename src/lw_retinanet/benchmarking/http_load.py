"""A load test of a detection service: many clients, a folder of images, every answer compared with the first one for its image."""

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from lw_retinanet.data.image_files import find_images
from lw_retinanet.errors import InputError

_BOX_TOLERANCE = 0.05  # pixels
_SCORE_TOLERANCE = 1e-4
_MAX_IMAGES = 1000


@dataclass(kw_only=True)
class HttpLoad:
    """What came of a load test.

    Args:
        requests: Requests that were sent.
        ok: Answers with status 200 that agree with the first one for their image.
        wrong: Answers with status 200 that do not.
        lost: Requests without an answer.
        errors: Answers with another status.
        seconds: Length of the test.
        latencies_ms: Of the answers with status 200.
    """

    requests: int = 0
    ok: int = 0
    wrong: int = 0
    lost: int = 0
    errors: int = 0
    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The JSON of the command."""
        p50, p95, p99 = np.percentile(self.latencies_ms, (50, 95, 99)).tolist() if self.latencies_ms else (None, None, None)
        counts = {name: getattr(self, name) for name in ("requests", "ok", "wrong", "lost", "errors")}
        per_second = (self.ok + self.wrong) / self.seconds if self.seconds else 0.0
        return {**counts, "seconds": self.seconds, "per_second": per_second, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


def load_test(
    url: str, images: str | Path, *, clients: int = 64, seconds: float = 60.0, timeout: float = 60.0, token: str | None = None
) -> HttpLoad:
    """Let clients send images one after the other, each on a connection that it keeps.

    Args:
        url: Address of the service; a URL without a path means its ``/detect``.
        images: Folder of images.
        clients: Number of clients at a time.
        seconds: How long they send; requests that were sent are waited for.
        timeout: Seconds after which a request counts as lost.
        token: Sent as ``Authorization: Bearer``.

    Raises:
        InputError: If the URL is none, the folder has no image, or the service cannot be reached.
    """
    test = _LoadTest(url, images, timeout, token)
    test.check()
    started = time.perf_counter()
    test.end = started + seconds
    with ThreadPoolExecutor(clients) as pool:
        for client in [pool.submit(test.send_images, number) for number in range(clients)]:
            client.result()
    test.load.seconds = time.perf_counter() - started
    return test.load


class _LoadTest:
    def __init__(self, url: str, images: str | Path, timeout: float, token: str | None) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise InputError(f"{url!r} is no URL of a service; give for instance http://127.0.0.1:8000")
        self.url = url
        self.host, self.port, self.kind = parts.hostname, port, HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.target = (parts.path if parts.path not in ("", "/") else "/detect") + (f"?{parts.query}" if parts.query else "")
        self.bodies = [path.read_bytes() for path in find_images([str(images)])[:_MAX_IMAGES]]
        self.timeout = timeout
        self.headers = {"content-type": "image/*", **({"authorization": f"Bearer {token}"} if token else {})}
        self.end = 0.0
        self.load = HttpLoad()
        self._first: dict[int, tuple[bytes, list[dict[str, Any]]]] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """One request, which does not count."""
        try:
            with closing(self._connect()) as connection:
                status, body = self._send(connection, 0)
        except (OSError, HTTPException) as error:
            raise InputError(f"{self.url} does not answer ({error}); start the service first") from None
        if status in (401, 404, 405, 415):
            raise InputError(f"{self.url} answers {status} to an image: {body[:200].decode(errors='replace')}; check the URL and the token")

    def send_images(self, client: int) -> None:
        """One client."""
        connection = self._connect()
        for number in itertools.count(client):
            if time.perf_counter() >= self.end:
                break
            row = number % len(self.bodies)
            started = time.perf_counter()
            try:
                status, body = self._send(connection, row)
            except (OSError, HTTPException):
                connection.close()
                with self._lock:
                    self.load.requests += 1
                    self.load.lost += 1
                continue
            self._count(row, status, body, 1000 * (time.perf_counter() - started))
        connection.close()

    def _connect(self) -> HTTPConnection:
        return self.kind(self.host, self.port, timeout=self.timeout)

    def _send(self, connection: HTTPConnection, row: int) -> tuple[int, bytes]:
        connection.request("POST", self.target, self.bodies[row], self.headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def _count(self, row: int, status: int, body: bytes, milliseconds: float) -> None:
        is_right = status == 200 and self._agrees(row, body)
        with self._lock:
            self.load.requests += 1
            if status != 200:
                self.load.errors += 1
                return
            self.load.latencies_ms.append(milliseconds)
            self.load.ok += is_right
            self.load.wrong += not is_right

    def _agrees(self, row: int, body: bytes) -> bool:
        """Whether an answer is the first one for its image, or equals it up to rounding."""
        first = self._first.get(row)
        if first is not None and first[0] == body:
            return True
        try:
            found = json.loads(body)["detections"]
            _table(found)
        except (ValueError, KeyError, TypeError):
            return False
        with self._lock:
            raw, expected = self._first.setdefault(row, (body, found))
        if raw == body:
            return True
        if [one["label"] for one in found] != [one["label"] for one in expected]:
            return False
        difference = np.abs(_table(found) - _table(expected))
        return bool((difference[:, :4] <= _BOX_TOLERANCE).all() and (difference[:, 4] <= _SCORE_TOLERANCE).all())


def _table(detections: list[dict[str, Any]]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(D, 5) boxes and scores."""
    return np.array([[*one["box"], one["score"]] for one in detections], np.float64).reshape(len(detections), 5)
