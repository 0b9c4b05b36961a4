"""The outermost layer: token, headers of every answer, access log, counters, errors of one form, connections that linger."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lw_retinanet.serving.refusal import RefusedError
from lw_retinanet.serving.request_body import ClientGoneError, Receive
from lw_retinanet.serving.service import DetectionService

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
log = logging.getLogger(__name__)
access_log = logging.getLogger("lw_retinanet.access")
_GUARDED = ("/detect", "/model", "/metrics")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)
# Closing at once would reset the connection, and a client that still sends would not see the answer. At most twice the limit is read.
_LINGER_S = 2.0


class OuterLayer:
    """Wraps the routes.

    Args:
        app: The routes.
        service: Its token, counters and state.
        paths: Known paths; others are counted together.
    """

    def __init__(self, app: Any, service: DetectionService, paths: frozenset[str]) -> None:
        self.app = app
        self.service = service
        self.paths = paths
        token = service.settings.token
        self._token = None if token is None else token.get_secret_value().encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    def refusal(self, scope: Message) -> RefusedError | None:
        """Why the request may not go on; None if it may."""
        if self._token is None or scope["path"] not in _GUARDED:
            return None
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if hmac.compare_digest(given, b"Bearer " + self._token):
            return None
        return RefusedError(401, "unauthorised", "send the header Authorization: Bearer TOKEN with the service's token")


class _Exchange:
    """One request and its answer."""

    def __init__(self, gate: OuterLayer, scope: Message, receive: Receive, send: Send) -> None:
        self.gate, self.scope, self._receive, self._send = gate, scope, receive, send
        self.status = 0
        self.received = self.sent = 0
        self.is_read = False
        self._closes = False

    async def run(self) -> None:
        started = time.perf_counter()
        try:
            if refusal := self.gate.refusal(self.scope):
                await self._refuse(refusal)
            else:
                await self.gate.app(self.scope, self.receive, self.send)
        except ClientGoneError:
            self.status = self.status or 499
            self.gate.service.metrics.cancelled.inc()
        except asyncio.CancelledError:
            self.status = self.status or 503
            raise
        except Exception as error:
            log.error("%s while answering %s", type(error).__name__, self.scope["path"][:100], exc_info=log.isEnabledFor(logging.DEBUG))
            if not self.status:
                await self._refuse(RefusedError(500, "internal", "the request failed; the service's log says why"))
        finally:
            self._log(time.perf_counter() - started)

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        self.is_read = self.is_read or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(header for header in _HEADERS if header[0] not in given)]
            if self.gate.service.state == "draining" and b"connection" not in given:
                message["headers"].append((b"connection", b"close"))
            self._closes = (b"connection", b"close") in message["headers"]
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
            if self._closes and not self.is_read and not message.get("more_body", False):
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body"}
        await self._send(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_S):
                while not self.is_read and self.received < 2 * self.gate.service.settings.max_bytes:
                    await self.receive()
        except TimeoutError:
            pass

    async def _refuse(self, refusal: RefusedError) -> None:
        headers = {"content-type": "application/json", "content-length": str(len(refusal.body)), **refusal.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": refusal.body})

    def _log(self, seconds: float) -> None:
        path = self.scope["path"]
        known = path if path in self.gate.paths else "other"
        self.gate.service.metrics.requests.labels(known, str(self.status)).inc()
        if known == "/detect":
            self.gate.service.metrics.latency.observe(seconds)
        line = {
            "time": round(time.time(), 3),
            "client": (self.scope.get("client") or ("",))[0],
            "method": self.scope["method"][:16],
            "path": path[:200],
            "status": self.status,
            "ms": round(1000 * seconds, 1),
            "received": self.received,
            "sent": self.sent,
        }
        access_log.info("%s", json.dumps(line))
