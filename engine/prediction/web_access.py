"""Which requests the web page answers: none that another site makes through the browser of a user.

A page from elsewhere can send forms to any address, and by a name that leads to this machine it could
read the answers. The first says where it comes from in `Origin`, the second asks for a foreign `Host`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")
DEFAULT_PORTS = {"http": {80}, "https": {443}, "": {80, 443}}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RefuseForeign:
    """Around an ASGI application: answers 403 to what `refusal` refuses.

    Args:
        app: the application.
        host: the address that the server listens on; of IPv6 with brackets or without.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], host: str) -> None:
        self.app = app
        name = host.lower().strip("[]")
        self.hosts = None if name in ANY_ADDRESS else {*THIS_MACHINE, name}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        reason = refusal(scope["headers"], self.hosts) if "headers" in scope else ""
        if not reason:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": reason.encode()})


def refusal(headers: Iterable[tuple[bytes, bytes]], hosts: set[str] | None) -> str:
    """Why a request is refused, '' where it is not.

    It has to ask for one of `hosts` (None: for any), and if it names an origin, that has to be the host
    that was asked for, of this server or of a proxy before it (`X-Forwarded-Host`). Ports have to be equal,
    too; a host without one may be on the default port of http or https.
    """
    given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    host = given.get("host", "")
    own = _addresses(f"//{host}")
    if hosts is not None and hosts.isdisjoint(name for name, _ in own):
        return f"this server is not {host!r}: open it by its own address, or start it with --host"
    origin = given.get("origin")
    own |= _addresses(f"//{given.get('x-forwarded-host', '')}")
    if origin is not None and own.isdisjoint(_addresses(origin)):
        return f"a page of {origin!r} may not ask this server"
    return ""


def _addresses(url: str) -> set[tuple[str, int]]:
    """The host and the port of a URL, or each that it may be by default; none without a host."""
    try:
        split = urlsplit(url.lower())
        host, port = split.hostname, split.port
    except ValueError:  # such as a bracket that is not closed
        return set()
    ports = DEFAULT_PORTS.get(split.scheme, set()) if port is None else {port}
    return {(host, each) for each in ports} if host else set()
