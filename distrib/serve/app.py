"""The endpoints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from distrib import __version__
from distrib.errors import DataError, DistribError
from distrib.serve.answers import Answers
from distrib.serve.body import Room, taken_in
from distrib.serve.figures import Figures
from distrib.serve.limits import EXPLAIN_COST, Limits
from distrib.serve.rate import RateLimiter, client_of
from distrib.serve.refusal import RefusedError
from distrib.serve.workers import QueueFullError, Workers

PATHS = ("/", "/v1/predict", "/v1/explain", "/v1/model", "/health", "/metrics")
_WORDS = {404: f"there is nothing at this address; there are {', '.join(PATHS)}",
          405: "this address does not take that method"}
_Answer = TypeVar("_Answer")


class Busy:
    """How many heat maps wait or are drawn. Of one thread."""

    explains = 0


def build_app(page: str, model: dict[str, Any], answers: Answers, workers: Workers, explainer: ThreadPoolExecutor,
              limits: Limits, figures: Figures) -> FastAPI:
    """The application; what must run before it is in `distrib.serve.guard`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # those pages load scripts from elsewhere
    limiter, room, busy = RateLimiter(limits.rate), Room(limits.held_bytes), Busy()
    model_json = json.dumps(model, allow_nan=False)

    def admit(request: Request, cost: float, full: bool) -> None:
        """Before anything of the body is read. Raises RefusedError."""
        client = client_of(request.client.host) if request.client else ""
        if wait_s := limiter.wait_s(client, cost):
            raise RefusedError(429, f"this is more than {limits.rate:g} requests a second; try again in "
                                    f"{wait_s:.1f} s", wait_s)
        if full:
            raise _queue_full()

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.post("/v1/predict")
    async def predict(request: Request) -> JSONResponse:
        admit(request, 1, workers.full)
        async with taken_in(request, limits, room) as raw:
            return JSONResponse(await _answered(
                lambda: asyncio.wrap_future(workers.submit(lambda: answers.predicted(raw)))))

    @app.post("/v1/explain")
    async def explain(request: Request) -> JSONResponse:
        admit(request, EXPLAIN_COST, workers.full or busy.explains > limits.explain_queue)
        busy.explains += 1
        try:
            async with taken_in(request, limits, room) as raw:
                return JSONResponse(await _answered(
                    lambda: asyncio.wrap_future(explainer.submit(answers.explained, raw))))
        finally:
            busy.explains -= 1

    @app.get("/v1/model")
    async def about() -> Response:
        return Response(model_json, media_type="application/json")

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"ready": True, "bundle_sha256": model["bundle_sha256"], "runtime": model["runtime"],
                             "version": __version__})

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = figures.text({
            "queue_images": (workers.waiting, "Images that wait for a thread."),
            "queue_heat_maps": (busy.explains, "Heat maps that wait or are drawn."),
            "held_bytes": (room.used, "Bytes of requests in memory."),
        })
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": error.message}, error.code, error.headers)

    @app.exception_handler(HTTPException)
    async def not_here(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": _WORDS.get(error.status_code, str(error.detail))}, error.status_code,
                            error.headers)

    return app


async def _answered(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """What was asked for, with errors as HTTP has them."""
    try:
        return await ask()
    except QueueFullError:
        raise _queue_full() from None
    except DataError as error:
        raise RefusedError(422, error.one_line()) from error
    except DistribError as error:  # the model's fault, not the image's
        raise RefusedError(500, error.one_line()) from error


def _queue_full() -> RefusedError:
    return RefusedError(503, "as many images wait as may; try again soon", 1)
