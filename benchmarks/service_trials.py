"""Tries what ``docs/serving.md`` promises on a service that it starts itself, and prints a table.

    python benchmarks/service_trials.py MODEL IMAGES [--only NAME ...] [--minutes 10] [--drains 50]

MODEL is a small model file, and IMAGES a folder of good images of mixed sizes. Every trial has its own service. It ends with exit code 1 if
an answer was wrong or lost. The figures are those of this machine with its clients on it.
"""

import argparse
import io
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEAD = b"POST /detect HTTP/1.1\r\nhost: a\r\n"


@dataclass(kw_only=True)
class Service:
    """A service in a process of its own."""

    process: "subprocess.Popen[bytes]"
    port: int
    bodies: list[bytes]
    solo: list[Any] = field(default_factory=list)

    def ask(self, body: bytes, connection: HTTPConnection | None = None) -> tuple[int, bytes, float]:
        """Status, body and seconds of one detection; status 0 if it was lost, -1 if nobody listened any more."""
        started = time.perf_counter()
        try:
            with closing(connection or HTTPConnection("127.0.0.1", self.port, timeout=60)) as client:
                client.request("POST", "/detect?score=0.05", body, {"content-type": "image/jpeg"})
                answer = client.getresponse()
                return answer.status, answer.read(), time.perf_counter() - started
        except ConnectionRefusedError:
            return -1, b"", time.perf_counter() - started
        except (OSError, HTTPException):
            return 0, b"", time.perf_counter() - started

    def is_right(self, number: int, status: int, body: bytes) -> bool:
        """Whether the answer for an image is the one that it got alone."""
        if status != 200:
            return False
        found, alone = json.loads(body)["detections"], self.solo[number]
        same = [one["label"] for one in found] == [one["label"] for one in alone]
        return same and all(
            abs(a["score"] - b["score"]) <= 1e-4 and np.allclose(a["box"], b["box"], atol=0.05) for a, b in zip(found, alone, strict=True)
        )

    def resident_mib(self) -> float:
        """Resident memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def admitted(self) -> float:
        """The gauge of accepted requests that have no answer yet."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as client:
            client.request("GET", "/metrics")
            text = client.getresponse().read().decode()
        return float(re.findall(r"^\w*queue_requests ([0-9.e+]+)$", text, re.MULTILINE)[0])


@contextmanager
def serving(model: str, bodies: list[bytes], *options: str) -> Iterator[Service]:
    """A service that is ready, with the answers of each image alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lw_retinanet", "serve", model, "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    service = Service(process=process, port=port, bodies=bodies)
    try:
        while service.ask(bodies[0])[0] != 200:
            assert process.poll() is None, f"serve ended with exit code {process.returncode}"
            time.sleep(0.1)
        service.solo = [json.loads(service.ask(body)[1])["detections"] for body in bodies]
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@dataclass(kw_only=True)
class Load:
    """Clients that send good images one after the other in the background."""

    service: Service
    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    lost: int = 0
    refused: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def client(self, first: int) -> None:
        """One client."""
        for number in itertools.count(first):
            if self.stop.is_set():
                return
            row = number % len(self.service.bodies)
            status, body, seconds = self.service.ask(self.service.bodies[row])
            if status == 200:
                self.seconds.append(seconds)
                self.wrong += not self.service.is_right(row, status, body)
            elif status in (503, -1):
                self.refused += 1
            else:
                self.lost += 1

    def p99_ms(self) -> float:
        """Of the answers."""
        return 1000 * float(np.percentile(self.seconds, 99))


@contextmanager
def loaded(service: Service, clients: int) -> Iterator[Load]:
    """A load while the block runs."""
    load = Load(service=service)
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(load.client, number) for number in range(clients)]
        try:
            yield load
        finally:
            load.stop.set()
        for client in running:
            client.result()


def exchange(port: int, data: bytes, timeout: float = 60) -> bytes:
    """What a connection answers to raw bytes; empty if it was closed or reset."""
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=timeout) as client:
        with suppress(ConnectionError):
            client.sendall(data)
        return client.recv(4000)
    return b""


def malformed_requests() -> list[bytes]:
    """Thirty that are no good HTTP or no good form."""
    form = HEAD + b"content-type: multipart/form-data; boundary=x\r\n"

    def parts(body: bytes, head: bytes = form) -> bytes:
        return head + b"content-length: %d\r\n\r\n" % len(body) + body

    field_ = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return [
        b"\x00\xff garbage\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"G@T / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nhost a\r\n\r\n", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n", b"GET /%00 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        b"DELETE /detect HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        HEAD + b"content-length: -5\r\n\r\n", HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ncontent-type: image/png\r\n\r\nZZ\r\n",
        HEAD + b"transfer-encoding: gzip\r\n\r\n",
        HEAD + b"content-encoding: gzip\r\ncontent-type: image/png\r\ncontent-length: 4\r\n\r\nabcd",
        HEAD + b"content-length: 0\r\ncontent-type: image/png\r\n\r\n", HEAD + b"content-type: text/plain\r\ncontent-length: 2\r\n\r\nhi",
        HEAD + b"content-length: 2\r\n\r\nhi", parts(b"--x--\r\n"), parts(b"nothing"), parts(field_), parts(field_ * 1000 + b"--x--\r\n"),
        parts(b"--x\r\n\r\n--x--\r\n"), parts(field_ + b"no image\r\n--x--\r\n"), parts(b"junk\r\n" + field_ + b"junk\r\n--x--\r\njunk"),
        parts(b"a", HEAD + b"content-type: multipart/form-data\r\n"),
        parts(b"a", HEAD + b"content-type: multipart/form-data; boundary=\r\n"),
        parts(b"a", HEAD + b"content-type: multipart/form-data; boundary=" + b"b" * 5000 + b"\r\n"),
    ]  # fmt: skip


def bad_images(good: bytes) -> list[bytes]:
    """Twelve kinds."""

    def saved(image: Image.Image, form: str) -> bytes:
        stream = io.BytesIO()
        image.save(stream, form)
        return stream.getvalue()

    wide = saved(Image.new("1", (9000, 9000)), "PNG")
    png = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "PNG")
    header = bytearray(good)
    at = good.index(b"\xff\xc0") + 5
    header[at : at + 4] = b"\x1f\x40\x1f\x40"  # says 8000 x 8000
    return [
        b"", b"nothing", good[: len(good) // 2], good[: -len(good) // 8], png[: len(png) // 2], b"PK\x03\x04" + good, wide,
        bytes(header), b"%PDF-1.4 " + good,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>", png[:40] + bytes(60) + png[100:], b"\xff\xd8\xff\xd9",
    ]  # fmt: skip


def try_malformed(model: str, bodies: list[bytes], _: argparse.Namespace) -> tuple[str, bool]:
    """Thirty malformed requests; a good one after each."""
    requests, slowest, wrong = malformed_requests(), 0.0, 0
    with serving(model, bodies) as service:
        for request in requests:
            started = time.perf_counter()
            answer = exchange(service.port, request)
            slowest = max(slowest, time.perf_counter() - started)
            wrong += answer[:10] not in (b"HTTP/1.1 4", b"HTTP/1.1 2", b"") or b"Traceback" in answer
            wrong += not service.is_right(0, *service.ask(bodies[0])[:2])
    return f"{len(requests)} requests, {wrong} wrong, slowest answer {1000 * slowest:.0f} ms", not wrong


def try_isolation(model: str, bodies: list[bytes], _: argparse.Namespace) -> tuple[str, bool]:
    """Twelve kinds of bad image at each of eight positions."""
    kinds, wrong, accepted = bad_images(bodies[0]), 0, 0
    with serving(model, bodies) as service, ThreadPoolExecutor(8) as pool:
        for bad, position in itertools.product(kinds, range(8)):
            group = [bad if place == position else bodies[place % len(bodies)] for place in range(8)]
            answers = list(pool.map(service.ask, group))
            for place, (status, body, _seconds) in enumerate(answers):
                if place == position:
                    accepted += not 400 <= status < 500
                else:
                    wrong += not service.is_right(place % len(bodies), status, body)
    return f"{8 * len(kinds)} batches: {wrong} mates harmed, {accepted} bad images not refused", not wrong and not accepted


def try_slow(model: str, bodies: list[bytes], _: argparse.Namespace) -> tuple[str, bool]:
    """Five hundred connections that send one byte a second, half of them in the head and half in the body."""
    with serving(model, bodies) as service:
        with loaded(service, 4) as before:
            time.sleep(10)
        slow = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(500)]
        for number, client in enumerate(slow):
            client.sendall(HEAD + (b"content-type: image/jpeg\r\ncontent-length: 5000\r\n\r\n" if number % 2 else b""))
        with loaded(service, 4) as during:
            open_, ended = slow, time.perf_counter() + 45
            while open_ and time.perf_counter() < ended:
                time.sleep(1)
                open_ = [client for client in open_ if _trickle(client)]
        for client in slow:
            client.close()
    harmed = before.wrong + before.lost + during.wrong + during.lost + during.refused
    text = f"p99 of good clients {before.p99_ms():.0f} -> {during.p99_ms():.0f} ms, {harmed} harmed, {len(open_)} still open after 45 s"
    return text, not harmed and not open_


def _trickle(client: socket.socket) -> bool:
    """Send a byte; whether the connection is still open."""
    try:
        client.sendall(b"x")
        client.setblocking(False)
        return client.recv(1000) != b"" and False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            client.setblocking(True)


def try_cancellations(model: str, bodies: list[bytes], _: argparse.Namespace) -> tuple[str, bool]:
    """A thousand clients that go away at a random moment."""
    random.seed(0)
    with serving(model, bodies) as service, ThreadPoolExecutor(16) as pool:

        def vanish(number: int) -> None:
            body = bodies[number % len(bodies)]
            request = HEAD + b"content-type: image/jpeg\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            with suppress(OSError), socket.create_connection(("127.0.0.1", service.port)) as client:
                client.sendall(request[: random.randint(1, len(request))] if number % 2 else request)
                time.sleep(random.random() * 0.2)

        list(pool.map(vanish, range(200)))
        before = service.resident_mib()
        list(pool.map(vanish, range(1000)))
        time.sleep(1)
        left, after = service.admitted(), service.resident_mib()
        wrong = not service.is_right(0, *service.ask(bodies[0])[:2])
    return f"{left:.0f} accepted left after 1 s, resident memory {before:.0f} -> {after:.0f} MiB", not left and not wrong


def try_large_body(model: str, bodies: list[bytes], _: argparse.Namespace) -> tuple[str, bool]:
    """A body of 1 GB: declared, and in chunks without a length."""
    with serving(model, bodies) as service:
        before = service.resident_mib()
        started = time.perf_counter()
        declared = exchange(service.port, HEAD + b"content-type: image/png\r\ncontent-length: 1000000000\r\n\r\n")
        seconds = time.perf_counter() - started
        sent, chunk = 0, b"100000\r\n" + bytes(2**20) + b"\r\n"
        with suppress(OSError), socket.create_connection(("127.0.0.1", service.port), timeout=60) as client:
            client.sendall(HEAD + b"content-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n")
            while sent < 1000:
                client.sendall(chunk)
                sent += 1
        grown = service.resident_mib() - before
        right = b" 413 " in declared and sent < 100 and service.is_right(0, *service.ask(bodies[0])[:2])
    text = f"declared: 413 after {1000 * seconds:.0f} ms; in chunks: cut off after {sent} MiB; resident memory +{grown:.0f} MiB"
    return text, right


def try_overload(model: str, bodies: list[bytes], _: argparse.Namespace) -> tuple[str, bool]:
    """Four times the requests that it can answer, for ten seconds."""
    with serving(model, bodies) as service:

        def rate(seconds: float) -> float:
            with loaded(service, 16) as load:
                time.sleep(seconds)
            return len(load.seconds) / seconds

        capacity = rate(10)
        with ThreadPoolExecutor(600) as pool:
            asked = []
            for number in range(int(40 * capacity)):
                asked.append(pool.submit(service.ask, bodies[number % len(bodies)]))
                time.sleep(1 / (4 * capacity))
            answers = [one.result() for one in asked]
        refused = [seconds for status, _, seconds in answers if status == 503]
        accepted = [seconds for status, _, seconds in answers if status == 200]
        others = len(answers) - len(refused) - len(accepted)
        again = rate(5)
    text = (
        f"{capacity:.0f} a second; of {len(answers)} requests {len(accepted)} answered (slowest {max(accepted):.1f} s), "
        f"{len(refused)} refused (median {1000 * np.median(refused):.0f} ms), {others} others; {again:.0f} a second in the 5 s after"
        if refused
        else f"{capacity:.0f} a second; all of {len(answers)} answered"
    )
    return text, not others and max(accepted) <= 30


def try_drains(model: str, bodies: list[bytes], arguments: argparse.Namespace) -> tuple[str, bool]:
    """SIGTERM under load, again and again."""
    lost = wrong = codes = answered = 0
    slowest = 0.0
    for _ in range(arguments.drains):
        with serving(model, bodies) as service, loaded(service, 16) as load:
            time.sleep(0.5 + random.random())
            started = time.perf_counter()
            service.process.send_signal(signal.SIGTERM)
            while not load.refused and time.perf_counter() < started + 30:
                time.sleep(0.01)
            load.stop.set()
            codes += service.process.wait(60) != 0
            slowest = max(slowest, time.perf_counter() - started)
        lost, wrong, answered = lost + load.lost, wrong + load.wrong, answered + len(load.seconds)
    text = f"{arguments.drains} drains, {answered} answers, {lost} lost, {wrong} wrong, {codes} exit codes but 0, slowest {slowest:.1f} s"
    return text, not lost and not wrong and not codes


def try_soak(model: str, bodies: list[bytes], arguments: argparse.Namespace) -> tuple[str, bool]:
    """Minutes of mixed load, one request in twenty bad."""
    bad, sizes = bad_images(bodies[0]), []
    with serving(model, bodies) as service:
        stop = threading.Event()

        def spoil() -> None:
            for number in itertools.count():
                if stop.wait(max(0.01, 20 * float(np.mean(load.seconds[-50:] or [0.1])) / 8)):
                    return
                service.ask(bad[number % len(bad)])

        with loaded(service, 8) as load, ThreadPoolExecutor(1) as pool:
            spoiling = pool.submit(spoil)
            for _ in range(arguments.minutes * 6):
                time.sleep(10)
                sizes.append(service.resident_mib())
            stop.set()
            spoiling.result()
    first, last = sizes[min(6, len(sizes) - 1)], sizes[-1]
    harmed = load.wrong + load.lost + load.refused
    memory = f"resident memory {first:.0f} MiB after a minute, {last:.0f} at the end ({last / first - 1:+.1%})"
    return f"{len(load.seconds)} answers, {harmed} harmed; {memory}", not harmed


Trial = Callable[[str, list[bytes], argparse.Namespace], tuple[str, bool]]
TRIALS: dict[str, Trial] = {
    "malformed": try_malformed,
    "isolation": try_isolation,
    "large body": try_large_body,
    "cancellations": try_cancellations,
    "slow": try_slow,
    "overload": try_overload,
    "drains": try_drains,
    "soak": try_soak,
}


def main() -> int:
    """Run the trials."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--only", nargs="*", default=list(TRIALS))
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--drains", type=int, default=50)
    arguments = parser.parse_args()
    bodies = [path.read_bytes() for path in sorted(arguments.images.glob("*.jpg"))]
    print("| trial | what came of it | right |\n| --- | --- | --- |", flush=True)
    all_right = True
    for name in arguments.only:
        text, is_right = TRIALS[name](arguments.model, bodies, arguments)
        all_right = all_right and is_right
        print(f"| {(TRIALS[name].__doc__ or '').rstrip('.')} | {text} | {'yes' if is_right else '**no**'} |", flush=True)
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main())
