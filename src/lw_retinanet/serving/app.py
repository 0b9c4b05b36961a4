"""The routes of the HTTP service."""

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from lw_retinanet import __version__
from lw_retinanet.serving.engine import NUM_EXAMPLES
from lw_retinanet.serving.outer_layer import OuterLayer
from lw_retinanet.serving.refusal import RefusedError
from lw_retinanet.serving.service import DetectionService

_PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/canvas.js": ("canvas.js", "text/javascript; charset=utf-8"),
}
_WORDS = {404: "there is nothing at this path; see /openapi.json", 405: "this path does not take this method; see /openapi.json"}
_JSON: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
_BINARY = {"type": "string", "format": "binary"}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "properties": {"code": {"type": "string"}, "message": {"type": "string"}}}},
}
_ERRORS = {
    status: {"description": words, "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
    for status, words in {
        400: "No image, or one that cannot be read",
        401: "The token is missing or wrong",
        408: "The request took too long to arrive",
        413: "Too many bytes or pixels",
        415: "Another content type",
        422: "A parameter out of range",
        503: "Busy, loading or draining; see Retry-After",
        504: "No answer before the deadline",
    }.items()
}
_DETECT_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "required": ["image"], "properties": {"image": _BINARY}}},
        "image/*": {"schema": _BINARY},
    },
}


def build_app(service: DetectionService) -> OuterLayer:
    """The routes of a service, with everything around them."""
    app = FastAPI(title="lw_retinanet", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.exception_handler(RefusedError)(_refused(service))
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_bad_parameter)
    _add_detection(app, service)
    _add_state(app, service)
    _add_page(app, service)
    paths = frozenset(str(getattr(route, "path", "")) for route in app.routes)
    return OuterLayer(app, service, paths)


def _add_detection(app: FastAPI, service: DetectionService) -> None:
    @app.post("/detect", responses={200: {"content": _JSON}, **_ERRORS}, openapi_extra={"requestBody": _DETECT_BODY})  # type: ignore[dict-item]
    async def detect(
        request: Request,
        score: float | None = Query(None, ge=0, lt=1, description="Smallest score of a detection."),
        head: Literal["light", "full"] | None = Query(None, description="Head of a lightened model."),
    ) -> Response:
        """Detect in one image: file, width, height, detections: [{box, score, label, name, category_id}]."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        content = await service.detect(request.receive, headers, score=score, head=head)
        return Response(content, media_type="application/json")

    @app.get("/model", responses={200: {"content": _JSON}})
    async def model() -> dict[str, Any]:
        """Classes, heads with their milliseconds and GMACs, and limits."""
        limits = {
            "examples": NUM_EXAMPLES,
            "max_bytes": service.settings.max_bytes,
            "max_pixels": service.settings.max_pixels,
            "score": service.settings.score,
            "best_score": record.best_score if (record := service.engine.detector.record) else None,
        }
        return {**service.engine.describe(), **limits}


def _add_state(app: FastAPI, service: DetectionService) -> None:
    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready", responses={503: _ERRORS[503]})
    async def ready() -> dict[str, str]:
        """The model is loaded and its answer to an example was finite."""
        if service.state != "ready":
            raise RefusedError(503, service.state, f"the service is {service.state}", retry_after=1)
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI, service: DetectionService) -> None:
    folder = resources.files("lw_retinanet.serving") / "page"

    def add(path: str, name: str, media_type: str) -> None:
        content = (folder / name).read_bytes()

        @app.get(path, include_in_schema=False)
        async def page_file() -> Response:
            return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    for path, (name, media_type) in _PAGE_FILES.items():
        add(path, name, media_type)

    @app.get("/examples/{number}.jpg", include_in_schema=False)
    async def example(number: int) -> Response:
        if not 0 <= number < NUM_EXAMPLES:
            raise HTTPException(404)
        return Response(service.engine.examples[number], media_type="image/jpeg")


def _refused(service: DetectionService) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(_: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        service.metrics.refused.labels(error.code).inc()
        return _response(error)

    return handle


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = _WORDS.get(error.status_code, "the request cannot be answered")
    return _response(RefusedError(error.status_code, "not_found" if error.status_code == 404 else "bad_request", message))


async def _bad_parameter(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    return _response(RefusedError(422, "bad_parameter", f"{str(problem['loc'][-1])[:50]}: {problem['msg']}"))


def _response(refusal: RefusedError) -> Response:
    return Response(refusal.body, status_code=refusal.status, media_type="application/json", headers=dict(refusal.headers))
