"""Answers that are not detections: their status, and the one form of their body."""

import json
from collections.abc import Mapping

from lw_retinanet.errors import LwRetinaNetError


class RefusedError(LwRetinaNetError):
    """Ends a request with an error.

    Args:
        status: HTTP status.
        code: A word for programs.
        message: A sentence for people, without anything about the server's files.
        retry_after: Seconds after which trying again makes sense.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after

    @property
    def body(self) -> bytes:
        """``{"error": {"code", "message"}}``."""
        return error_body(self.code, self.message)

    @property
    def headers(self) -> Mapping[str, str]:
        """``Retry-After`` if it is known, and the end of the connection where a body may not have been read."""
        retry = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**retry, "connection": "close"} if self.status in (408, 413, 415, 503) else retry


def error_body(code: str, message: str) -> bytes:
    """The body of every error."""
    return json.dumps({"error": {"code": code, "message": message[:1000]}}).encode()


def too_large(limit: int) -> RefusedError:
    """The request body is larger than the limit."""
    return RefusedError(413, "too_large", f"the request is larger than the limit of {limit:,} bytes; send a smaller image")
