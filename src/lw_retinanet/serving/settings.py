"""Limits and addresses of the HTTP service."""

from typing import Annotated

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, SecretStr

Seconds = Annotated[float, Field(gt=0, le=3600)]


class ServeSettings(BaseModel, frozen=True, extra="forbid"):
    """What the service listens to, and what it allows.

    Args:
        host: Address to listen on; the default is reached from this machine only.
        port: Port to listen on; 0 takes a free one.
        token: If given, requests need the header ``Authorization: Bearer TOKEN``; the page and the health checks do not.
        score: Smallest score of a detection where a request does not say.
        max_batch: Largest number of images that go through the network together.
        batch_wait_ms: How long the first image of a batch waits for others. With 0, those that wait already go together.
        queue: Largest number of requests that wait or are worked on; beyond it they are refused at once.
        deadline_s: How long a request may take from its last byte to its answer.
        max_bytes: Largest request body.
        max_pixels: Largest image.
        receive_s: How long the body of a request may take to arrive.
        head_s: How long the head of a request may take to arrive.
        write_s: How long a client may leave an answer unread.
        drain_s: How long requests that were accepted may still take after the signal to stop.
        max_connections: Largest number of open connections.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    token: SecretStr | None = None
    score: float = Field(0.3, ge=0, lt=1)
    max_batch: PositiveInt = 8
    batch_wait_ms: float = Field(0.0, ge=0, le=1000)
    queue: PositiveInt = 128
    deadline_s: Seconds = 30.0
    max_bytes: PositiveInt = 32 * 2**20
    max_pixels: PositiveInt = 64_000_000
    receive_s: Seconds = 30.0
    head_s: Seconds = 10.0
    write_s: Seconds = 30.0
    drain_s: PositiveFloat = Field(25.0, le=3600)
    max_connections: PositiveInt = 900
