"""The load test against services whose answers are known."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.benchmarking.http_load import load_test
from lw_retinanet.errors import InputError


def answer(score: float = 0.5, box: float = 10.0, label: int = 1) -> bytes:
    return json.dumps({"detections": [{"box": [0.0, 0.0, box, 10.0], "score": score, "label": label}]}).encode()


@contextmanager
def answering(*bodies: bytes | int | None) -> Iterator[str]:
    """A service that gives these answers in turn; a number is a status, and None hangs up."""
    turns = count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = bodies[min(next(turns), len(bodies) - 1)]
            if body is None:
                self.close_connection = True
                return
            content = body if isinstance(body, bytes) else b"{}"
            self.send_response(200 if isinstance(body, bytes) else body)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def test_every_kind_of_answer_is_counted(images: Path) -> None:
    good = answer()
    # The first request of all only checks the address.
    kinds = (good, good, answer(score=0.50005), answer(score=0.501), answer(box=10.1), answer(label=0), b"no json", 503, None, good)
    with answering(*kinds) as url:
        load = load_test(url, images, clients=1, seconds=0.5)
    assert (load.wrong, load.lost, load.errors) == (4, 1, 1)
    assert load.ok == load.requests - 6 >= 3
    values = load.as_dict()
    assert values["p50_ms"] <= values["p95_ms"] <= values["p99_ms"]
    assert list(values) == ["requests", "ok", "wrong", "lost", "errors", "seconds", "per_second", "p50_ms", "p95_ms", "p99_ms"]


def test_a_load_test_of_nothing_is_refused(images: Path) -> None:
    with pytest.raises(InputError, match="start the service first"):
        load_test("http://127.0.0.1:1", images, clients=1, seconds=0.1)
    for url in ("127.0.0.1:8000", "ftp://a", "http://a:99999"):
        with pytest.raises(InputError, match="no URL of a service"):
            load_test(url, images)
    with answering(404) as url, pytest.raises(InputError, match="answers 404"):
        load_test(url, images, clients=1, seconds=0.1)
