"""Request bodies under limits that count what really arrives, and the image in them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from lw_retinanet.serving.refusal import RefusedError, too_large
from lw_retinanet.serving.settings import ServeSettings

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
FIELD = b"image"
_MAX_PARTS = 16
_MAX_PART_HEAD = 8192
_MAX_SMALL_MESSAGES = 2000


class ClientGoneError(Exception):
    """The client closed the connection, so that nobody waits for an answer."""


class BodyReader:
    """Receives bodies, and bounds the memory that all of them take together."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.held = 0
        self._max_held = 8 * settings.max_bytes
        self._scopes: set[asyncio.Timeout] = set()

    async def receive(self, receive: Receive, headers: Mapping[str, str]) -> bytes:
        """Receive the whole body. The caller gives its bytes back with :meth:`release`.

        Raises:
            RefusedError: 413 over the limit, 408 if it takes too long, 415 for a compressed body, 503 if all bodies together are too large.
            ClientGoneError: If the client goes away.
        """
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RefusedError(415, "unsupported_encoding", "compressed request bodies are not read; send the image as it is")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.settings.max_bytes:
            raise too_large(self.settings.max_bytes)
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.receive_s) as scope:
                self._scopes.add(scope)
                await self._fill(body, receive)
        except TimeoutError:
            self.held -= len(body)
            raise RefusedError(408, "too_slow", "the request took too long to arrive; send it again") from None
        except BaseException:
            self.held -= len(body)
            raise
        finally:
            self._scopes.discard(scope)
        return bytes(body)

    def release(self, body: bytes) -> None:
        """The body is not needed any more."""
        self.held -= len(body)

    def hurry(self, seconds: float) -> None:
        """Give the bodies that are being received so many more seconds at most."""
        latest = asyncio.get_running_loop().time() + seconds
        for scope in self._scopes:
            if not scope.expired() and (scope.when() or latest) > latest:
                scope.reschedule(latest)

    async def _fill(self, body: bytearray, receive: Receive) -> None:
        small = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            small += len(chunk) < 64
            body += chunk
            self.held += len(chunk)
            if len(body) > self.settings.max_bytes:
                raise too_large(self.settings.max_bytes)
            if small > _MAX_SMALL_MESSAGES:
                raise RefusedError(413, "too_many_pieces", "the request arrives in too many small pieces; send larger ones")
            if self.held > self._max_held:
                raise RefusedError(503, "busy", "too many large requests at a time; try again", retry_after=1)
            if not message.get("more_body", False):
                return


def image_bytes(body: bytes, content_type: str) -> bytes:
    """The image file in a request body: the field ``image`` of a form, or the body itself.

    Raises:
        RefusedError: 400 for a broken form or no image in it, 415 for another content type.
    """
    kind, options = parse_options_header(content_type)
    if kind.startswith(b"image/"):
        image = body
    elif kind == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:  # RFC 2046, 5.1.1
            raise RefusedError(400, "bad_form", "the form has no boundary of 1 to 70 characters; let your HTTP client set Content-Type")
        image = _Form(body, boundary).image()
    else:
        raise RefusedError(415, "unsupported_type", "send the image as multipart/form-data with the field image, or as it is with image/*")
    if not image:
        raise RefusedError(400, "no_image", "the image is empty; send the bytes of an image file")
    return image


class _Form:
    """Finds the field of the image in a complete form without copying the rest."""

    def __init__(self, body: bytes, boundary: bytes) -> None:
        self.body = body
        self._parts: list[bytearray] = []
        self._names: list[bytes] = []
        self._header = (bytearray(), bytearray())
        self._head_size = 0
        self._is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._head(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._head(1, data[start:end]),
                "on_header_end": self._end_header,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def image(self) -> bytes:
        """The content of the first field ``image``."""
        try:
            self._parser.write(self.body)
            self._parser.finalize()
        except MultipartParseError:
            raise RefusedError(400, "bad_form", "the form is broken; let your HTTP client make it") from None
        if not self._is_complete:
            raise RefusedError(400, "bad_form", "the form ends too early; send it again")
        for name, content in zip(self._names, self._parts, strict=True):
            if name == FIELD:
                return bytes(content)
        raise RefusedError(400, "no_image", "the form has no field called image; name the file's field image")

    def _begin(self) -> None:
        if len(self._parts) == _MAX_PARTS:
            raise RefusedError(400, "bad_form", f"the form has more than {_MAX_PARTS} parts; send the image alone")
        self._parts.append(bytearray())
        self._names.append(b"")
        self._head_size = 0

    def _head(self, place: int, data: bytes) -> None:
        self._head_size += len(data)
        if self._head_size > _MAX_PART_HEAD:
            raise RefusedError(400, "bad_form", "a part of the form has too long a head; let your HTTP client make the form")
        self._header[place].extend(data)

    def _end_header(self) -> None:
        field, value = map(bytes, self._header)
        if field.lower() == b"content-disposition":
            self._names[-1] = parse_options_header(value)[1].get(b"name", b"")
        self._header[0].clear()
        self._header[1].clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._names[-1] == FIELD:
            self._parts[-1] += data[start:end]

    def _end(self) -> None:
        self._is_complete = True
