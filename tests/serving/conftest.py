"""A small model that finds something in every image, and services that run it."""

import asyncio
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.records import Category
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.build import build
from lw_retinanet.weights.model_file import make_record, save_model

pytest.importorskip("fastapi")
CATEGORIES = (Category(id=3, name="cat"), Category(id=7, name="dog"))


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with two classes, for images of 64 pixels."""
    torch.manual_seed(0)
    conventions = Conventions(input=InputRule(size=64))
    plan = PRESETS["lw-v3"]
    model = build(plan, num_classes=2, backbone="resnet18", width=16, conventions=conventions).eval()
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if "predict" in name:
                parameter.normal_(std=0.05)
    record = make_record(model, preset="lw-v3", backbone="resnet18", width=16, norm="frozen", plan=plan, categories=CATEGORIES, notes={})
    path = tmp_path_factory.mktemp("served") / "model.safetensors"
    save_model(path, model, record)
    return path


def image_file(seed: int, size_hw: tuple[int, int] = (48, 64), form: str = "PNG") -> bytes:
    """A noisy image as a file."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size_hw, 3), dtype=np.uint8)).save(stream, form)
    return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer to an HTTP request."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Served:
    """A service that listens."""

    port: int
    process: "subprocess.Popen[str] | None" = None
    service: Any = None

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """One request on a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(status=answer.status, headers={k.lower(): v for k, v in answer.getheaders()}, body=answer.read())

    def post(self, body: Any, query: str = "", kind: str = "image/png") -> Reply:
        """Detect in an image."""
        return self.request("POST", f"/detect{query}", body, {"content-type": kind})


@contextlib.contextmanager
def serving(open_detector: Callable[[], Any], **settings: Any) -> Iterator[Served]:
    """A service in a thread of this process."""
    from lw_retinanet.serving import server as module
    from lw_retinanet.serving.settings import ServeSettings

    chosen = ServeSettings.model_validate({"port": 0, **settings})
    ready, box = threading.Event(), dict[str, Any]()

    async def main(listener: Any) -> None:
        running = module.Running(listener, open_detector, chosen)
        box["loop"], box["running"] = asyncio.get_running_loop(), running
        await running.run(on_ready=ready.set)

    with module.listening_socket(chosen) as listener, ThreadPoolExecutor(1) as thread:
        port = listener.getsockname()[1]
        end = thread.submit(lambda: asyncio.run(main(listener)))
        while not (end.done() or ready.wait(0.01)):
            pass
        try:
            if not end.done():
                yield Served(port=port, service=box["running"].service)
        finally:
            if not end.done():
                box["loop"].call_soon_threadsafe(box["running"].stop)
            end.result(30)


@pytest.fixture
def start(model_file: Path) -> Iterator[Callable[..., Served]]:
    """Starts the command in a process and waits until it is ready."""
    processes: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []

    def run(*options: str) -> Served:
        command = [sys.executable, "-m", "lw_retinanet.cli.main", "serve", str(model_file), "--port", "0", *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        processes.append(process)
        assert process.stderr
        line = next(line for line in process.stderr if "serving" in line)
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line
        readers.append(threading.Thread(target=process.stderr.read))  # a full pipe would stop the service
        readers[-1].start()
        return Served(port=int(found[1]), process=process)

    yield run
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        for reader in readers:
            reader.join()
        assert process.stderr
        process.stderr.close()
