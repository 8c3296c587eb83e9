"""The server of the viewer: static files, the list of episodes, and their data; for this machine only."""

import asyncio
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neurocoder.errors import NeurocoderError
from neurocoder.runs.replay.frames import strip_bytes, strip_name
from neurocoder.runs.replay.page import middle_strip, payload, thumbnail
from neurocoder.runs.viewer.index import EpisodeIndex, listing

HOSTS = ["127.0.0.1", "localhost"]
"""Names by which the page may be asked for: any other is a page elsewhere that reaches for this machine."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLL = 1.0
"""Seconds between two looks for new episodes."""


def create_app(root: Path) -> Starlette:
    """Return the application that shows the episodes below `root`."""
    index = EpisodeIndex(root)
    static = {
        file.name: file.read_bytes()
        for file in (resources.files("neurocoder.runs.viewer") / "static").iterdir()
        if file.is_file()
    }

    def home(_: Request) -> Response:
        return Response(static["index.html"], media_type=TYPES[".html"])

    def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in static:
            return _missing()
        return Response(static[name], media_type=TYPES.get(Path(name).suffix, "application/octet-stream"))

    def episodes(_: Request) -> Response:
        return JSONResponse(listing(index))

    def episode(request: Request) -> Response:
        key = request.path_params["key"]
        found = index.open(key)
        return JSONResponse(payload(found, key, lambda number: f"/frames/{quote(key)}/{strip_name(number)}"))

    def small(request: Request) -> Response:
        found = index.open(request.path_params["key"])
        index.require_inside(found.folder / "frames" / strip_name(middle_strip(found)))
        return Response(thumbnail(found), media_type="image/webp")

    def strip(request: Request) -> Response:
        found = index.open(request.path_params["key"])
        number = request.path_params["name"].removesuffix(".webp")
        if not number.isdecimal() or int(number) * found.info.per_strip >= found.info.n_frames:
            return _missing()
        index.require_inside(found.folder / "frames" / strip_name(int(number)))
        return Response(strip_bytes(found.folder, found.info, int(number)), media_type="image/webp")

    async def live(request: Request) -> Response:
        return StreamingResponse(_changes(request, index), media_type="text/event-stream")

    return Starlette(
        routes=[
            Route("/", home),
            Route("/static/{name}", file),
            Route("/api/episodes", episodes),
            Route("/api/episode/{key:path}", episode),
            Route("/api/thumbnail/{key:path}", small),
            Route("/api/live", live),
            Route("/frames/{key:path}/{name}", strip),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(_Headers)],
        exception_handlers={NeurocoderError: _readable, 404: lambda *_: _missing()},
    )


def _readable(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=404)


def _missing() -> Response:
    return JSONResponse({"error": "there is no such page"}, status_code=404)


async def _changes(request: Request, index: EpisodeIndex) -> AsyncIterator[str]:
    """Yield an event whenever the list of episodes has changed."""
    known: set[tuple[str, float]] | None = None
    while not await request.is_disconnected():
        entries = await asyncio.to_thread(index.scan)
        found = {(key, entry.changed) for key, entry in entries.items()}
        if known is not None and found != known:
            yield "data: changed\n\n"
        known = found
        await asyncio.sleep(POLL)


class _Headers:
    """Adds `HEADERS` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self.app(scope, receive, with_headers)
