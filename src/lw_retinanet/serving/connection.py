"""uvicorn's HTTP/1.1 connection with the limits that it lacks: time for the head, time to read answers, number of connections."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lw_retinanet.serving.refusal import RefusedError
from lw_retinanet.serving.settings import ServeSettings

_FIRST_BYTES_S = 1.0  # when the service ends: clients that have connected and not yet sent anything would see a reset connection


class LimitedConnection(H11Protocol):
    """A connection that no client can hold for ever."""

    limits = ServeSettings.model_validate({})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first head."""
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._has_received = self._is_last_chance = False
        if len(self.connections) > self.limits.max_connections:
            self._refuse(RefusedError(503, "busy", "too many connections are open; try again", retry_after=1))
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        super().connection_lost(exc)
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; the clock runs while a head is incomplete."""
        self._has_received = True
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """As before, but a closing connection has an end."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        """As before, but a closing connection has an end."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def shutdown(self) -> None:
        """As before, but a connection that was just opened may still send its request, and a closing connection has an end."""
        if not self._has_received and not self._is_last_chance:
            self._is_last_chance = True
            self.loop.call_later(_FIRST_BYTES_S, self.shutdown)
            return
        super().shutdown()
        if self.transport.is_closing():
            self._abort_later()

    def pause_writing(self) -> None:
        """The client does not read: it has so long to go on."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._write_timer is not None and not self.transport.is_closing():
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """The head is no HTTP."""
        self._refuse(RefusedError(400, "bad_request", "this is no HTTP/1.1 request that can be read"))

    def handle_websocket_upgrade(self, event: Any) -> None:
        """There are no web sockets."""
        self._refuse(RefusedError(400, "bad_request", "there are no web sockets here"))

    def _should_upgrade(self) -> bool:
        return False

    def _watch_head(self) -> None:
        is_waiting = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if is_waiting and self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_s, self._head_is_late)
        elif not is_waiting and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if not self.transport.is_closing():
            self._refuse(RefusedError(408, "too_slow", "the head of the request took too long to arrive"))

    def _refuse(self, refusal: RefusedError) -> None:
        """Answer without the application, and close."""
        body = refusal.body
        lines = [
            f"HTTP/1.1 {refusal.status} Refused",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        lines += [f"{name}: {value}" for name, value in refusal.headers.items() if name != "connection"]
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_s, self.transport.abort)
