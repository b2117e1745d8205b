"""Who may speak with the server: every request passes here before any other code sees it.

The page holds a person's work and runs beside their browser's other pages, so the guard assumes
that any of those may try to reach it: by its address, by a name that was made to resolve to it (DNS
rebinding), or by a form that is sent across sites.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

LARGEST_BODY: Final = 16 * 1024
"""Bytes of a request; an answer needs some hundred."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_READS: Final = frozenset({"GET", "HEAD"})
# Nothing in them is secret, and whoever has no token should see a readable page.
_PUBLIC: Final = "/static/"

_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Hosts:
    """Names under which the server may be addressed.

    Attributes:
        names: host names and addresses besides those of the loopback, in lower case, no port.
        any_address: whether any IP address will do, for a server that listens on all of them. A
            name can be made to resolve to the server by a stranger, an address cannot.
    """

    names: Collection[str] = ()
    any_address: bool = False

    def __contains__(self, header: str) -> bool:
        """Whether a Host header names this server."""
        name = _host_name(header)
        if name is None:
            return False
        if name in _LOOPBACK or name in self.names:
            return True
        if not self.any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class Guard:
    """ASGI middleware that lets only the page's own requests through.

    Host is on the list, else 421; the token is in the cookie, or in the address of the first page,
    else 401; a write comes from this very origin, else 403; it is JSON, else 415, of a bounded
    size, else 413.
    """

    def __init__(self, app: Application, *, token: str, hosts: Hosts) -> None:
        """Guards an application.

        Args:
            app: the application.
            token: what the printed address holds; made anew at each start.
            hosts: names of this server.
        """
        self._app = app
        self._token = token.encode()
        self._hosts = hosts
        # Cookies do not know ports: two servers on one machine must not take each other's.
        self._cookie = f"tether_{hashlib.sha256(self._token).hexdigest()[:10]}"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        if headers is None:
            await _refuse(send, 400, "the request has the Host or Origin header twice")
            return
        host = headers.get("host", "")
        if host not in self._hosts:
            await _refuse(
                send, 421, f"this server is not {host[:80]!r}; start it with --allow-host NAME"
            )
            return
        first = self._from_address(scope)
        public = scope["method"] in _READS and scope["path"].startswith(_PUBLIC)
        if not (public or first or self._known(headers.get("cookie", ""))):
            line = "open the address that tether label has printed; it holds this start's token"
            await _refuse(send, 401, line)
            return
        if scope["method"] not in _READS:
            refusal = _refusal(scope, headers)
            if refusal is not None:
                await _refuse(send, *refusal)
                return
            body = await _body(receive, headers)
            if body is None:
                await _refuse(send, 413, f"the request is larger than {LARGEST_BODY} bytes")
                return
            receive = _replay(body, receive)
        await self._app(scope, receive, _adding(send, self._cookie_header() if first else ()))

    def _from_address(self, scope: Message) -> bool:
        """Whether this asks for the page and its address holds the token."""
        if scope["method"] != "GET" or scope["path"] != "/":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return hmac.compare_digest(given.encode(), self._token)

    def _known(self, cookies: str) -> bool:
        try:
            found = SimpleCookie(cookies).get(self._cookie)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self._token)

    def _cookie_header(self) -> tuple[tuple[bytes, bytes], ...]:
        value = f"{self._cookie}={self._token.decode()}; HttpOnly; SameSite=Strict; Path=/"
        return ((b"set-cookie", value.encode()),)


def _headers(scope: Message) -> dict[str, str] | None:
    """Headers by name; None if one that decides is there twice."""
    found: dict[str, str] = {}
    for key, value in scope["headers"]:
        name = key.decode("latin-1").lower()
        if name in found and name in ("host", "origin", "content-length", "content-type"):
            return None
        text = value.decode("latin-1")
        found[name] = f"{found[name]}; {text}" if name == "cookie" and name in found else text
    return found


def _host_name(header: str) -> str | None:
    try:
        parts = urlsplit(f"//{header}")
        parts.port  # noqa: B018  (raises where it is no number)
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def _refusal(scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
    """Why a write is refused; None if it is not."""
    origin = urlsplit(headers.get("origin", ""))
    if origin.scheme != scope.get("scheme", "http") or origin.netloc != headers["host"]:
        return 403, "only this server's own page may write: the Origin header names another"
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return 403, "only this server's own page may write: the request comes from another site"
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "the request is not application/json"
    return None


async def _body(receive: Receive, headers: dict[str, str]) -> bytes | None:
    """The whole body; None if it is too large."""
    try:
        if int(headers.get("content-length", "0")) > LARGEST_BODY:
            return None
    except ValueError:
        return None
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _adding(send: Send, more: tuple[tuple[bytes, bytes], ...]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS, *more]}
        await send(message)

    return sending


async def _refuse(send: Send, status: int, line: str) -> None:
    content = json.dumps({"error": line}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
        # The rest of a body that was not read must not be taken for the next request.
        (b"connection", b"close"),
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
