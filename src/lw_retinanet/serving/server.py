"""Runs the service: a socket, the signals, and an end that loses nothing."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError, MissingExtraError
from lw_retinanet.serving.settings import ServeSettings

try:
    import uvicorn

    from lw_retinanet.serving.app import build_app
    from lw_retinanet.serving.connection import LimitedConnection
    from lw_retinanet.serving.service import DetectionService
except ModuleNotFoundError as error:
    if (error.name or "").startswith("lw_retinanet"):
        raise
    raise MissingExtraError(f"serving needs {error.name}; install it with: pip install 'lw-retinanet[serve]'") from None

log = logging.getLogger(__name__)
# After the signal, the service still answers for so long, so that balancers see that it is not ready and clients see no reset connection.
_FAREWELL_S = 0.5


def serve(open_detector: Callable[[], Detector], settings: ServeSettings) -> int | None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted. A second signal ends the process at once.

    Args:
        open_detector: Opens the model.
        settings: Address and limits.

    Returns:
        The signal that ended it.

    Raises:
        InputError: If the port is not free, or the model cannot be opened.
    """
    _return_freed_memory()
    with listening_socket(settings) as listener:
        return asyncio.run(_serve(listener, open_detector, settings))


def _return_freed_memory() -> None:
    """Have glibc give large freed blocks back to the system.

    By itself it raises the size from which it does so, up to 32 MiB; with images of many sizes the memory of a service then grows for
    hours.
    """
    trim_threshold, mmap_threshold = -1, -3  # from malloc.h
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**21)
        libc.mallopt(trim_threshold, 2**26)


@contextlib.contextmanager
def listening_socket(settings: ServeSettings) -> Iterator[socket.socket]:
    """A socket on the address of the settings.

    Raises:
        InputError: If there is no such address here or its port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"host {settings.host!r} is no address of this machine ({error}); try 127.0.0.1 or 0.0.0.0") from None
    with listener:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot listen on {settings.host} port {settings.port} ({reason}); choose another host or port") from None
        yield listener


class _QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers, which raise the signal again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Running:
    """A service on a socket, until it is stopped.

    Args:
        listener: A bound socket.
        open_detector, settings: As for :func:`serve`.
    """

    def __init__(self, listener: socket.socket, open_detector: Callable[[], Detector], settings: ServeSettings) -> None:
        self.service = DetectionService(open_detector, settings)
        self.listener = listener
        self._stopped = False
        config = uvicorn.Config(
            build_app(self.service),
            http=type("_Limited", (LimitedConnection,), {"limits": settings}),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.drain_s,  # type: ignore[arg-type]
        )
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        self._server = _QuietServer(config)

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Load the model, answer, and return when the last accepted request has its answer.

        Raises:
            InputError: If the model cannot be opened.
        """
        serving = asyncio.create_task(self._server.serve(sockets=[self.listener]))
        batching = asyncio.create_task(self.service.run_forever())
        loading = asyncio.create_task(self.service.load())
        try:
            await asyncio.wait((loading, serving, batching), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                host, port = self.listener.getsockname()[:2]
                log.info("serving %s at http://%s:%d/", self.service.engine.detector.name, f"[{host}]" if ":" in host else host, port)
                on_ready()
                await asyncio.wait((serving, batching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._server.should_exit = True
            await serving
            loading.cancel()
            batching.cancel()
            self.service.close()

    def stop(self) -> None:
        """Accept nothing any more, and end when everything that was accepted is answered."""
        if not self._stopped:
            self._stopped = True
            self.service.drain()
            asyncio.get_running_loop().call_later(_FAREWELL_S, setattr, self._server, "should_exit", True)


async def _serve(listener: socket.socket, open_detector: Callable[[], Detector], settings: ServeSettings) -> int | None:
    running = Running(listener, open_detector, settings)
    received: list[int] = []

    def on_signal(number: int) -> None:
        if received:
            os._exit(1)
        received.append(number)
        log.info("stopping; %d requests are still answered", running.service.admitted)
        running.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    await running.run()
    return received[0] if received else None
