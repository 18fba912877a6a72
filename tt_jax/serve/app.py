"""The web application: the page, its WebSocket, videos to fetch, health and metrics."""

import asyncio
import json
import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect

from tt_jax.serve.guard import guard
from tt_jax.serve.metrics import exposition
from tt_jax.serve.protocol import ProtocolError, parse
from tt_jax.serve.session import UNWATCHED, Gone, Hall, Visitor
from tt_jax.serve.take import Engine, new_name

MOST = 100  # visitors at once
IDLE = 900.0  # seconds without a message, after which a visitor without a video is let go
PAGE = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "player.js": ("player.js", "text/javascript"),
    "curve.js": ("curve.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
TRY_AGAIN_LATER = 1013

log = logging.getLogger("tt_jax.serve")


def create_app(
    engine: Engine, token: str | None = None, *, idle: float = IDLE, unwatched: float = UNWATCHED
) -> ASGIApp:
    """The application.

    Args:
        engine: makes chunks.
        token: see `guard.guard`.
        idle: seconds, see `IDLE`.
        unwatched: seconds, see `session.UNWATCHED`.

    Returns:
        It, for any ASGI server.
    """
    halls: list[Hall] = []
    visitors: set[Visitor] = set()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="tt-jax-serve-") as folder:
            halls.append(Hall(engine, Path(folder), unwatched))
            try:
                yield
            finally:
                halls.pop().close()

    async def socket(ws: WebSocket) -> None:
        await ws.accept()
        if len(visitors) >= MOST:
            halls[0].counts.refused += 1
            await ws.close(TRY_AGAIN_LATER, "Too many visitors: come back later.")
            return
        say, send = _senders(ws)
        visitor = Visitor(halls[0], say, send)
        visitors.add(visitor)
        try:
            await say({"type": "hello", **engine.offer})
            await _listen(ws, visitor, idle)
        except Gone:
            pass
        finally:
            visitors.discard(visitor)
            await visitor.leave()

    async def video(request: Request) -> Response:
        hall = halls[0]
        take = hall.takes.get(request.path_params["name"])
        if take is None or not take.recording.frames:
            return PlainTextResponse("There is no such video, or it has no frame yet.", 404)
        path = hall.folder / f"{new_name()}.mp4"
        try:
            await asyncio.to_thread(take.recording.save, path)
        except OSError:
            path.unlink(missing_ok=True)
            log.exception("a video can't be written")
            return PlainTextResponse("The video can't be written: the disk may be full.", 507)
        drop = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(path, filename="tt-jax.mp4", media_type="video/mp4", background=drop)

    async def record(request: Request) -> Response:
        take = halls[0].takes.get(request.path_params["name"])
        if take is None:
            return PlainTextResponse("There is no such video.", 404)
        text = json.dumps(take.record(engine), indent=2, allow_nan=False, ensure_ascii=False)
        attached = {"content-disposition": 'attachment; filename="tt-jax.json"'}
        return Response(text, media_type="application/json", headers=attached)

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        gauges = {
            "visitors": ("Open connections.", float(len(visitors))),
            "streams": ("Videos being made.", float(sum(v.on_stage for v in visitors))),
            "queue": ("Visitors who wait for their turn.", float(halls[0].turns.waiting)),
            **_memory(engine),
        }
        return PlainTextResponse(exposition(halls[0].counts, gauges))

    files = resources.files("tt_jax.serve") / "page"
    pages = [
        Route(f"/{path}", _fixed((files / name).read_bytes(), kind))
        for path, (name, kind) in PAGE.items()
    ]
    others = [
        WebSocketRoute("/live", socket),
        Route("/takes/{name}.mp4", video),
        Route("/takes/{name}.json", record),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
    ]

    def refused() -> None:
        halls[0].counts.refused += 1

    return guard(Starlette(routes=[*pages, *others], lifespan=lifespan), token, refused)


def _senders(ws: WebSocket) -> tuple[Any, Any]:
    """What a visitor sends with: Gone instead of what Starlette raises where nobody listens."""

    async def say(message: dict[str, Any]) -> None:
        try:
            await ws.send_json(message)
        except (WebSocketDisconnect, RuntimeError):
            raise Gone from None

    async def send(message: bytes) -> None:
        try:
            await ws.send_bytes(message)
        except (WebSocketDisconnect, RuntimeError):
            raise Gone from None

    return say, send


async def _listen(ws: WebSocket, visitor: Visitor, idle: float) -> None:
    """Does what a visitor asks for until the connection ends."""
    while True:
        try:
            async with asyncio.timeout(idle):
                message = await ws.receive()
        except TimeoutError:
            if visitor.busy:  # in line, or with a page that isn't looked at
                continue
            with suppress(WebSocketDisconnect, RuntimeError):  # it has just gone
                await ws.close(1000, "Nothing happened for a while: reload the page to go on.")
            return
        if message["type"] == "websocket.disconnect":
            return
        try:
            if message.get("text") is not None:
                visitor.handle(parse(message["text"]))
            else:
                await visitor.picture(message["bytes"])
        except ProtocolError as error:
            await visitor.refuse(error)


def _fixed(body: bytes, kind: str) -> Any:
    async def answer(request: Request) -> Response:
        return Response(body, media_type=kind)

    return answer


def _memory(engine: Engine) -> dict[str, tuple[str, float]]:
    """Gauges of memory: the process's, and the device's, where the systems say."""
    gauges = {}
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        kilobytes = float(lines["VmRSS"].split()[0])
        gauges["resident_memory_bytes"] = ("Memory of the process.", 1024 * kilobytes)
    if (used := engine.memory()) is not None:
        gauges["device_memory_bytes"] = ("Memory of the device.", float(used))
    return gauges
