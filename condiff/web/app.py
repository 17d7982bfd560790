"""The application: a page, its form, pictures that are sent, files that are fetched, and a WebSocket for the rest.

No request names a file: pages, scripts and results are looked up in tables of what there is.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files as resources
from typing import Any

from condiff import __version__
from condiff.errors import CondiffError, require_extra
from condiff.web.files import OFFERED
from condiff.web.guard import Guard, Guarded
from condiff.web.limits import Limits
from condiff.web.results import Results, metadata
from condiff.web.session import Session
from condiff.web.source import Source
from condiff.web.uploads import Uploads
from condiff.web.worker import Job, Message, Worker, explained

log = logging.getLogger(__name__)
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("app", "form", "panel", "draw", "meta")
    },
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
FULL = 1013  # try again later


def static(name: str) -> bytes:
    """A file of the page, as it is shipped."""
    return resources("condiff.web").joinpath("static", name).read_bytes()


def build_app(source: Source, guard: Guard, limits: Limits, uploads: Uploads) -> Guarded:
    """The application around a model; its thread starts with the server and ends with it.

    Raises:
        MissingExtra: without FastAPI.
    """
    fastapi = require_extra("fastapi", "web")
    results = Results(source, limits)

    def work(job: Job) -> Message:
        job.tell({"type": "started"})
        made = source.make(job.settings, job)
        results.add(job.id, made)
        shown = {"view": source.viewer(made.x), **source.shown_beside(made), **metadata(made)}
        return {"type": "done", "job": job.id, "files": [*source.files(made), "json"], **shown}

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        app.state.worker, app.state.clients = Worker(work, limits.queue), 0
        yield
        await asyncio.to_thread(app.state.worker.close)

    app = fastapi.FastAPI(
        lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, title="condiff", version=__version__
    )
    _add_errors(app, fastapi)
    _add_pages(app, fastapi)
    _add_files(app, fastapi, results, uploads, limits)
    about = {**source.about(), "version": __version__, "limits": _told(limits)}
    app.add_api_route("/api/about", lambda: about)
    _add_socket(app, fastapi, limits)
    return Guarded(app, guard, static("locked.html"))


def _told(limits: Limits) -> dict[str, int]:
    return {name: getattr(limits, name) for name in ("num", "steps", "upload", "text", "each")}


def _add_errors(app: Any, fastapi: Any) -> None:
    """Every error as ``{"error": message}``; what isn't ours is logged and tells nothing of the inside."""
    respond = fastapi.responses.JSONResponse

    async def ours(request: Any, error: Exception) -> Any:
        return respond({"error": str(error)}, 400)

    async def http(request: Any, error: Any) -> Any:
        return respond({"error": str(error.detail)}, error.status_code)

    async def fault(request: Any, error: Exception) -> Any:
        return respond({"error": explained(error)}, 500)

    app.add_exception_handler(CondiffError, ours)
    app.add_exception_handler(require_extra("starlette.exceptions", "web").HTTPException, http)
    app.add_exception_handler(Exception, fault)


def _add_pages(app: Any, fastapi: Any) -> None:
    for path, (name, kind) in PAGES.items():
        answer = fastapi.Response(static(name), media_type=kind)
        app.add_api_route(path, _constant(answer), response_class=fastapi.Response)


def _constant(answer: Any) -> Any:
    async def page() -> Any:
        return answer

    return page


def _add_files(app: Any, fastapi: Any, results: Results, uploads: Uploads, limits: Limits) -> None:
    async def send_picture(request: fastapi.Request):
        """A picture as the body of the request, never more of it than is allowed."""
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > limits.upload:
                raise fastapi.HTTPException(413, f"a picture may have {limits.upload} bytes here")
            parts.append(part)
        name, (height, width) = await asyncio.to_thread(uploads.add, b"".join(parts))
        return {"picture": name, "height": height, "width": width}

    def fetch(job: str, ending: str):
        kind = OFFERED.get(f".{ending}")
        content = None if kind is None else results.file(job, ending)
        if content is None:
            raise fastapi.HTTPException(404, "these samples aren't on the server (any more): make them again")
        headers = {"content-disposition": f'attachment; filename="samples.{ending}"'}
        return fastapi.Response(content, media_type=kind, headers=headers)

    app.add_api_route("/api/pictures", send_picture, methods=["POST"])
    app.add_api_route("/api/results/{job}/{ending}", fetch, response_class=fastapi.Response)


def _add_socket(app: Any, fastapi: Any, limits: Limits) -> None:
    async def socket(websocket: fastapi.WebSocket):
        state = app.state
        await websocket.accept()
        if state.clients >= limits.clients:
            await websocket.close(FULL, f"{limits.clients} pages are connected already")
            return
        state.clients += 1
        try:
            await Session(websocket, state.worker, limits).run()
        finally:
            state.clients -= 1

    app.add_api_websocket_route("/api/socket", socket)
