"""Who may come in: checks of Host, Origin and token before anything else, and strict headers."""

import hmac
import logging
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "tt_jax_token"
OPEN = "/healthz"  # for whoever looks after the machine
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

log = logging.getLogger("tt_jax.serve")


def guard(app: ASGIApp, token: str | None, refused: Callable[[], None]) -> ASGIApp:
    """Lets through to an application what may come in.

    Args:
        app: the application.
        token: what everybody must know. It comes once in the page's address, is kept in a cookie,
            and may be given as a bearer. None: only this machine may ask, by one of its own names,
            so that no page of elsewhere reaches us through a name that it has pointed here.
        refused: is called whenever somebody isn't let in.

    Returns:
        An application.
    """

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = _refusal(scope, headers, token)
        if answer is None:
            await app(scope, receive, _strict(send))
            return
        if answer.status_code >= 400:
            refused()
            log.warning("refused %s: %s", scope["path"], bytes(answer.body).decode())
        if scope["type"] == "websocket":
            await receive()  # the request to connect
            await send({"type": "websocket.close", "code": 1008})
        else:
            await answer(scope, receive, _strict(send))

    return guarded


def _refusal(scope: Scope, headers: Headers, token: str | None) -> Response | None:
    """What is answered instead of what was asked for; None if it may be answered."""
    host = headers.get("host", "")
    if token is None and _name(host) not in LOOPBACK:
        return PlainTextResponse("Ask by a name of this machine: 127.0.0.1 or localhost.", 403)
    origin = headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != host
    if foreign or (scope["type"] == "websocket" and origin is None):
        return PlainTextResponse("Only the page of this server may ask.", 403)
    if token is None or (scope["path"] == OPEN and scope["type"] == "http"):
        return None
    asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
    if asked and scope["path"] == "/" and scope["type"] == "http" and _same(asked, token):
        # Out of the address, where it would be seen and kept.
        redirect = RedirectResponse("/", 303)
        redirect.set_cookie(COOKIE, token, httponly=True, samesite="lax")
        return redirect
    if _same(_cookie(headers), token) or _same(headers.get("authorization", ""), f"Bearer {token}"):
        return None
    return PlainTextResponse(
        "Open the address with the token that `tt-jax serve` has printed.", 401
    )


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _strict(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sent
