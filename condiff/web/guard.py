"""Who may talk to the server: hosts, origins and the token, checked before anything else sees a request.

A page of another site can send requests to a server on this machine, and a name of that site can be made to point
here (DNS rebinding). So the ``Host`` has to be one of ours and the ``Origin``, where a browser tells one, the same as
the host: for WebSockets, too, which no browser keeps apart by itself. Behind other addresses than the machine's own, a
token is needed beside.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from condiff.errors import BadValue

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
SHORTEST = 12  # characters of a token
OPEN = ("/app.css", "/icon.svg")  # nothing but looks; the page that asks for the token needs them
COOKIE_AGE = 30 * 24 * 3600
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Guard:
    """
    Args:
        names: host names that are ours, lower case.
        addresses: whether any IP address is: no name can be rebound to one.
        token: what requests have to show; None for nothing.
        cookie: the cookie that remembers it; ports share their cookies, so it is one for each.
    """

    names: frozenset[str]
    addresses: bool = False
    token: str | None = None
    cookie: str = "condiff"

    @classmethod
    def of(cls, host: str, port: int, token: str | None = None, also: Iterable[str] = ()) -> Guard:
        """The guard of a server bound to a host.

        Args:
            also: other names that it goes by, such as that of a proxy.

        Raises:
            BadValue: an exposed host without a token, a token that can be guessed.
        """
        exposed = not is_loopback(host)
        if exposed and token is None:
            raise BadValue(f"{host} is reached from other machines: a token is needed")
        if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable()):
            raise BadValue(f"a token has at least {SHORTEST} characters, all of them plain ASCII")
        names = {*LOOPBACK, host, *also, *([socket.gethostname(), socket.getfqdn()] if exposed else [])}
        return cls(frozenset(name.lower() for name in names), exposed, token, f"condiff-{port}")

    def knows(self, host: str | None) -> bool:
        """Whether a ``Host`` header names this server."""
        name = hostname(host)
        if name is None:
            return False
        return name in self.names or (self.addresses and _is_address(name))

    def admits(self, given: str | None) -> bool:
        """Whether a token is the right one, in a time that doesn't tell where they differ."""
        if self.token is None:
            return True
        return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())

    def shown(self, headers: Mapping[str, str]) -> str | None:
        """The token that a request shows, in its cookie or its ``Authorization``."""
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and bearer:
            return bearer.strip()
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return None
        return None if morsel is None else morsel.value

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Why a request is refused: a status and a reason; None if it isn't."""
        headers = _headers(scope)
        host, origin = headers.get("host"), headers.get("origin")
        if not self.knows(host):
            return 421, "this server doesn't go by that host name"
        if origin is not None and urlsplit(origin).netloc.lower() != (host or "").lower():
            return 403, "requests from pages of other sites are refused"
        if origin is None and headers.get("sec-fetch-site") in ("cross-site", "same-site") and scope["path"] != "/":
            return 403, "requests from pages of other sites are refused"
        if scope["path"] in OPEN or self.admits(self.shown(headers)):
            return None
        return 401, "this needs the token: open the address that the server printed"


def hostname(host: str | None) -> str | None:
    """The name in a ``Host`` header, without the port; None for what isn't one."""
    if not host or any(c in host for c in "@/\\?# ,"):
        return None
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _headers(scope: Scope) -> dict[str, str]:
    """Header names are lower case already; of one that is sent twice, none is believed."""
    out: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1")
        out[key] = value.decode("latin-1") if key not in out else "\0"
    return out


class Guarded:
    """An ASGI application behind a :class:`Guard`, with headers that keep browsers careful.

    ``/?token=...`` sets the cookie and leads on to ``/``, so that the token doesn't stay in the address bar.

    Args:
        locked: the page that a browser without the token sees.
    """

    def __init__(self, app: App, guard: Guard, locked: bytes = b"") -> None:
        self.app, self.guard, self.locked = app, guard, locked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        refused = self.guard.refusal(scope)
        if scope["type"] == "websocket":
            return await (self.app(scope, receive, send) if refused is None else send(CLOSE))
        careful = _with_headers(send)
        if refused is None or (refused[0] == 401 and scope["path"] == "/"):
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token") if scope["path"] == "/" else None
            if given and self.guard.token is not None and self.guard.admits(given[0]):
                return await _answer(careful, 303, b"", {"location": "/", "set-cookie": self._cookie()})
        if refused is None:
            return await self.app(scope, receive, careful)
        status, why = refused
        if status == 401 and scope["path"] == "/":
            return await _answer(careful, 401, self.locked, {"content-type": "text/html; charset=utf-8"})
        return await _answer(careful, status, json.dumps({"error": why}).encode(), {"content-type": "application/json"})

    def _cookie(self) -> str:
        guard = self.guard
        morsel = SimpleCookie({guard.cookie: guard.token or ""})[guard.cookie]
        for key, value in {"path": "/", "httponly": True, "samesite": "Strict", "max-age": COOKIE_AGE}.items():
            morsel[key] = value
        return morsel.OutputString()


CLOSE = {"type": "websocket.close", "code": 1008, "reason": "refused"}  # before it is accepted: HTTP 403


def _with_headers(send: Send) -> Send:
    async def careful(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            extra = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return careful


async def _answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    pairs = [(k.encode(), v.encode()) for k, v in {**headers, "content-length": str(len(body))}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
