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
    that was asked for, of this server or of a proxy before it (`X-Forwarded-Host`).
    """
    given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    host = given.get("host", "")
    if hosts is not None and _parts(f"//{host}")[1] not in hosts:
        return f"this server is not {host!r}: open it by its own address, or start it with --host"
    origin = given.get("origin")
    own = {host.lower(), given.get("x-forwarded-host", host).lower()}
    if origin is not None and _parts(origin)[0] not in own:
        return f"a page of {origin!r} may not ask this server"
    return ""


def _parts(address: str) -> tuple[str, str]:
    """The host with its port, and without; '' where the address has none."""
    try:
        split = urlsplit(address.lower())
        return split.netloc, split.hostname or ""
    except ValueError:  # such as a bracket that is not closed
        return "", ""
