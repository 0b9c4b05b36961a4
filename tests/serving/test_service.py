"""What keeps the service alive: bad mates, no memory, full queues, slow and vanished clients, the end."""

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.serving.conftest import Reply, Served, image_file, serving

from lw_retinanet.cli.main import _run
from lw_retinanet.exporting.load import open_detector
from lw_retinanet.serving.engine import DetectionEngine, PreparedImage


@pytest.fixture(scope="module")
def steady(model_file: Path) -> Iterator[Served]:
    with serving(lambda: open_detector(model_file)) as served:
        yield served


def at_once(served: Served, bodies: Sequence[bytes]) -> list[Reply]:
    with ThreadPoolExecutor(len(bodies)) as clients:
        return list(clients.map(served.post, bodies))


def slowed(served: Served, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every batch takes so long in addition."""
    detect = served.service.engine.detect

    def slow(group: Sequence[PreparedImage]) -> list[dict[str, Any]]:
        time.sleep(seconds)
        return detect(group)

    monkeypatch.setattr(served.service.engine, "detect", slow)


def test_mates_of_a_bad_image_get_their_answers(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The image 63 pixels wide makes every batch that it is in fail, as an image too large for the device does.
    detect = DetectionEngine.detect

    def failing(self: DetectionEngine, group: Sequence[PreparedImage]) -> list[dict[str, Any]]:
        if any(image.inputs.originals_hw[0] == (48, 63) for image in group):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return detect(self, group)

    monkeypatch.setattr(DetectionEngine, "detect", failing)
    bodies = [image_file(number) for number in range(8)]
    with serving(lambda: open_detector(model_file), batch_wait_ms=300) as served:
        alone = [json.loads(served.post(body).body) for body in bodies]
        for place in (0, 3, 7):
            mixed = [image_file(9, (48, 63)) if row == place else body for row, body in enumerate(bodies)]
            _check_mates(at_once(served, [*mixed, b"\xff\xd8\xffbroken"]), place, alone)


def _check_mates(replies: list[Reply], place: int, alone: list[Any]) -> None:
    assert replies.pop().status == 400
    assert (replies[place].status, json.loads(replies[place].body)["error"]["code"]) == (503, "out_of_memory")
    for row, reply in enumerate(replies):
        if row != place:
            assert reply.status == 200
            found, expected = json.loads(reply.body)["detections"], alone[row]["detections"]
            assert [one["label"] for one in found] == [one["label"] for one in expected]
            np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], atol=1e-5)


def test_a_full_queue_refuses_at_once_and_recovers(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda: open_detector(model_file), queue=4, max_batch=1) as served:
        slowed(served, monkeypatch, 0.2)
        replies = at_once(served, [image_file(1)] * 16)
        statuses = [reply.status for reply in replies]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 4
        assert all(reply.headers["retry-after"].isdigit() for reply in replies if reply.status == 503)
        assert served.post(image_file(1)).status == 200
        assert served.service.admitted == 0


def test_what_misses_its_deadline_is_never_run(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda: open_detector(model_file), max_batch=1, deadline_s=0.3) as served:
        slowed(served, monkeypatch, 0.25)
        replies = at_once(served, [image_file(1)] * 6)
        assert {reply.status for reply in replies} <= {200, 503, 504}
        assert any(reply.status == 504 for reply in replies)
        time.sleep(0.4)
        run = served.service.metrics.registry.get_sample_value("lw_retinanet_batch_images_sum")
        assert run <= 3
        assert served.service.admitted == 0


def test_vanished_clients_leave_nothing_behind(model_file: Path) -> None:
    body = image_file(1)
    head = b"POST /detect HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\ncontent-length: %d\r\n\r\n" % len(body)
    with serving(lambda: open_detector(model_file)) as served:
        for number in range(60):
            with socket.create_connection(("127.0.0.1", served.port)) as client:
                client.sendall((head + body)[: 20 + number * (len(head + body) // 59)])
        end = time.monotonic() + 5
        while (served.service.admitted or served.service.bodies.held) and time.monotonic() < end:
            time.sleep(0.02)
        assert served.service.admitted == served.service.bodies.held == 0
        assert served.post(body).status == 200


def test_slow_clients_are_cut_off(model_file: Path) -> None:
    with serving(lambda: open_detector(model_file), head_s=0.3, receive_s=0.4) as served:
        begun = {
            b"": b"",
            b"POST /detect HT": b"HTTP/1.1 408",
            b"POST /detect HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\ncontent-length: 99\r\n\r\nx": b"HTTP/1.1 408",
        }
        clients = {start: socket.create_connection(("127.0.0.1", served.port), timeout=5) for start in begun}
        for start, client in clients.items():
            client.sendall(start)
        assert served.post(image_file(1)).status == 200
        for start, client in clients.items():
            assert client.recv(4000).startswith(begun[start])
            client.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\xff\x00garbage\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /detect HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-type: image/png\r\n\r\nZZ\r\n",
        b"POST /detect HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\ncontent-length: 1000000000\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n",
    ],
)
def test_any_bytes_are_answered(steady: Served, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", steady.port), timeout=5) as client:
        try:
            client.sendall(request_bytes)
            answer = client.recv(4000)
        except ConnectionError:  # the answer may be lost where the client has sent more than was read
            answer = b"HTTP/1.1 4"
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200"))
    assert steady.request("GET", "/health/live").status == 200


def test_sigterm_answers_what_was_accepted(start: Callable[..., Served]) -> None:
    served = start()
    process = served.process
    assert process is not None
    replies: list[int] = []

    def client() -> None:
        while True:
            replies.append(served.post(image_file(1, (480, 640), "JPEG"), kind="image/jpeg").status)
            if replies[-1] != 200:
                return

    with ThreadPoolExecutor(8) as clients, socket.create_connection(("127.0.0.1", served.port), timeout=10) as late:
        running = [clients.submit(client) for _ in range(8)]
        while len(replies) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for one in running:
            one.result(30)
        while not _is_refused(served.port):
            time.sleep(0.01)
        late.sendall(b"GET /health/ready HTTP/1.1\r\nhost: a\r\n\r\n")
        assert late.recv(4000).startswith(b"HTTP/1.1 503")
    assert process.wait(30) == 0
    assert set(replies) == {200, 503}


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.slow
def test_a_second_signal_ends_at_once(start: Callable[..., Served]) -> None:
    process = start().process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 1


def test_one_line_where_it_cannot_start(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments in (["serve", str(model_file), "--port", str(port)], ["serve", str(broken), "--port", "0"]):
            assert _run(arguments, False) == 2
            message = capsys.readouterr().err.strip()
            assert message.startswith("error: ")
            assert "\n" not in message
