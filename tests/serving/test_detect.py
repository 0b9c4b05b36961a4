"""Answers of the service: what predict says, errors of one form, nothing of the server's own."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.conftest import Served, image_file, serving

import lw_retinanet as lw
from lw_retinanet.exporting.load import open_detector


@pytest.fixture(scope="module")
def served(model_file: Path) -> Iterator[Served]:
    with serving(lambda: open_detector(model_file), max_bytes=100_000, max_pixels=100_000) as service:
        yield service


def form(content: bytes, name: str = "image") -> tuple[bytes, str]:
    head = f'--frontier\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return head.encode() + content + b"\r\n--frontier--\r\n", "multipart/form-data; boundary=frontier"


def error(reply: Any) -> tuple[int, str]:
    body = json.loads(reply.body)
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message"]
    assert "/" not in body["error"]["message"].replace("multipart/form-data", "").replace("image/", "").replace("HTTP/1.1", "").replace(
        "/openapi", ""
    )
    return reply.status, body["error"]["code"]


def test_answers_are_those_of_predict(served: Served, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(image_file(1))
    expected = lw.load(model_file).predict(path, score=0.001)[0].to_dict()
    assert expected["detections"]
    for body, kind in ((path.read_bytes(), "image/png"), form(path.read_bytes())):
        reply = served.post(body, "?score=0.001", kind)
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        found = json.loads(reply.body)
        assert found.pop("file") is None
        assert found == {key: value for key, value in expected.items() if key != "file"}


def test_a_score_of_another_request_changes_nothing(served: Served) -> None:
    engine = served.service.engine
    low = engine.prepare(image_file(2), score=0.001, head=None)
    scores = [one["score"] for one in engine.detect([low])[0]["detections"]]
    high = engine.prepare(image_file(2), score=scores[len(scores) // 2], head=None)
    alone, together = engine.detect([high])[0], engine.detect([low, high])
    assert len(together[0]["detections"]) > len(together[1]["detections"]) == len(alone["detections"]) > 0
    for key in ("box", "score"):
        np.testing.assert_allclose([d[key] for d in together[1]["detections"]], [d[key] for d in alone["detections"]], atol=1e-4)


@pytest.mark.parametrize(
    ("body", "kind", "query", "expected"),
    [
        (b"", "image/png", "", (400, "no_image")),
        (b"no image at all", "image/png", "", (400, "bad_image")),
        (image_file(1)[:400], "image/png", "", (400, "bad_image")),
        (image_file(1, (400, 400), "JPEG")[:90_000], "image/jpeg", "", (413, "bad_image")),
        (image_file(1), "text/plain", "", (415, "unsupported_type")),
        (image_file(1), "", "", (415, "unsupported_type")),
        (image_file(1), "multipart/form-data", "", (400, "bad_form")),
        (image_file(1), "multipart/form-data; boundary=" + "x" * 200, "", (400, "bad_form")),
        (image_file(1), "multipart/form-data; boundary=x", "", (400, "bad_form")),
        (form(image_file(1))[0][:-20], form(b"")[1], "", (400, "bad_form")),
        (form(image_file(1), "picture")[0], form(b"")[1], "", (400, "no_image")),
        (b"--frontier\r\n\r\n\r\n" * 1000 + b"--frontier--\r\n", form(b"")[1], "", (400, "bad_form")),
        (image_file(1), "image/png", "?score=2", (422, "bad_parameter")),
        (image_file(1), "image/png", "?score=nan", (422, "bad_parameter")),
        (image_file(1), "image/png", "?head=none", (422, "bad_parameter")),
        (image_file(1), "image/png", "?head=full", (422, "bad_parameter")),
        (b"x" * 100_001, "image/png", "", (413, "too_large")),
    ],
)
def test_bad_requests_have_one_form(served: Served, body: bytes, kind: str, query: str, expected: tuple[int, str]) -> None:
    assert error(served.post(body, query, kind)) == expected


def test_other_paths_and_methods(served: Served) -> None:
    assert error(served.request("GET", "/nothing")) == (404, "not_found")
    assert error(served.request("GET", "/..%2f..%2fetc/passwd")) == (404, "not_found")
    assert error(served.request("GET", "/detect")) == (405, "bad_request")
    assert error(served.request("GET", "/" + "x" * 60_000)) == (404, "not_found")
    assert error(served.request("POST", "/detect", image_file(1), {"content-type": "image/png", "content-encoding": "gzip"}))[0] == 415


def test_state_and_description(served: Served) -> None:
    assert served.request("GET", "/health/live").status == served.request("GET", "/health/ready").status == 200
    model = json.loads(served.request("GET", "/model").body)
    assert [(one["id"], one["name"]) for one in model["classes"]] == [(3, "cat"), (7, "dog")]
    (head,) = model["heads"]
    assert (head["name"], head["gmacs"] > 0, head["ms"] > 0) == ("light", True, True)
    paths = json.loads(served.request("GET", "/openapi.json").body)["paths"]
    assert set(paths) == {"/detect", "/model", "/health/live", "/health/ready", "/metrics"}
    served.post(image_file(1))
    text = served.request("GET", "/metrics").body.decode()
    assert 'lw_retinanet_requests_total{path="/detect",status="200"}' in text
    assert "lw_retinanet_queue_requests 0.0" in text


def test_a_chunked_body_without_length_is_counted(served: Served) -> None:
    reply = served.request("POST", "/detect", (b"x" * 1000 for _ in range(200)), {"content-type": "image/png"})
    assert (error(reply), reply.headers["connection"]) == ((413, "too_large"), "close")
    reply = served.request("POST", "/detect", (b"x" * 2 for _ in range(20_000)), {"content-type": "image/png"})
    assert reply.status in (400, 413)


def test_a_body_without_end_is_cut_off(served: Served) -> None:
    sent = itertools.count()
    with contextlib.suppress(OSError, HTTPException):
        served.request("POST", "/detect", (b"x" * 100_000 for _ in range(2_000) if next(sent) >= 0), {"content-type": "image/png"})
    assert next(sent) < 2_000


def test_connections_are_kept(served: Served) -> None:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=10)
    statuses = []
    for body in (image_file(1), b"bad", image_file(1)):
        connection.request("POST", "/detect", body, {"content-type": "image/png"})
        answer = connection.getresponse()
        answer.read()
        statuses.append((answer.status, connection.sock is not None))
    assert statuses == [(200, True), (400, True), (200, True)]
    connection.close()


def test_a_token_guards_the_detector_but_not_its_health(model_file: Path) -> None:
    with serving(lambda: open_detector(model_file), token="secret") as guarded:
        assert error(guarded.post(image_file(1))) == (401, "unauthorised")
        assert guarded.request("GET", "/metrics", headers={"authorization": "Bearer wrong"}).status == 401
        assert guarded.request("GET", "/model", headers={"authorization": "Bearer secret"}).status == 200
        assert guarded.request("GET", "/health/ready").status == guarded.request("GET", "/").status == 200
