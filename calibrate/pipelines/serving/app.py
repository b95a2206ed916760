"""The routes: completions and chat completions, what is served, how it is doing, and a page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from calibrate.common.errors import InputError
from calibrate.pipelines.serving.catalogue import Catalogue
from calibrate.pipelines.serving.desk import Desk
from calibrate.pipelines.serving.faults import answered, as_http
from calibrate.pipelines.serving.listening import Gone
from calibrate.pipelines.serving.metrics import Metrics
from calibrate.pipelines.serving.scheduler import Full, Scheduler, Stopped

CONTENT_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
LOG = logging.getLogger("uvicorn.error")  # where uvicorn tells what it catches itself


def make_app(
    catalogue: Catalogue, scheduler: Scheduler, hosts: Sequence[str] = ("127.0.0.1", "localhost")
) -> FastAPI:
    """The server of a catalogue; it starts and stops the scheduler.

    hosts: names by which it may be asked, "*" for any; others are refused, so that no web page can
        reach it under a name of its own. There is no CORS either.
    """

    @asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        try:
            yield
        finally:
            await asyncio.to_thread(scheduler.stop)

    app = FastAPI(title="calibrate serve", lifespan=running, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    metrics = Metrics(scheduler)
    desk = Desk(catalogue, scheduler, metrics)

    @app.middleware("http")
    async def counted(request: Request, call: Callable[[Request], Any]) -> Response:
        try:
            response: Response = await call(request)
        except Exception as error:  # a handler of its own would answer outside of this count
            LOG.exception("%s %s fails", request.method, request.url.path)
            response = await answered(request, error)
        route = getattr(request.scope.get("route"), "path", "other")
        metrics.requests.labels(route, response.status_code).inc()
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    for kind in (InputError, Full, Stopped, Gone):
        app.add_exception_handler(kind, answered)
    app.add_exception_handler(HTTPException, as_http)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await desk.chat(request)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await desk.complete(request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "calibrate"}
            for name in catalogue.names
        ]
        return {"object": "list", "data": listed}

    @app.get("/v1/calibrations")
    async def calibrations() -> dict[str, Any]:
        served = [each.facts() for each in catalogue.calibrations]
        return {"model": catalogue.loaded.name, "data": served}

    @app.get("/healthz")
    async def health() -> Response:
        facts = {"running": scheduler.running, "waiting": scheduler.waiting}
        if not scheduler.alive:
            return JSONResponse({"status": "down", **facts}, 503)
        return JSONResponse({"status": "ok", **facts})

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(_page(), headers={"Content-Security-Policy": CONTENT_POLICY})

    return app


@cache
def _page() -> str:
    return (files("calibrate.pipelines.serving") / "page.html").read_text(encoding="utf-8")
