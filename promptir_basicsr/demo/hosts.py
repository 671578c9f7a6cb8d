"""Host check of the demo page, against DNS rebinding."""

import ipaddress
from collections.abc import Set
from typing import Any
from urllib.parse import urlsplit


class KnownHosts:
    """ASGI middleware that only accepts requests with a host name of this machine.

    A third-party site could point its own name to this machine and then read the responses ("DNS rebinding"); such
    requests have that name. Numeric addresses are not affected.

    Args:
        app: ASGI application.
        names: of this machine, in lower case.
    """

    def __init__(self, app: Any, names: Set[str]) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward requests with a known host; refuse others with status 421."""
        if scope['type'] != 'http' or self.knows(dict(scope['headers']).get(b'host', b'').decode('latin-1')):
            await self.app(scope, receive, send)
            return
        body = b'This page only accepts the host names of this machine. Start it with `--host NAME` for another one.\n'
        headers = [(b'content-type', b'text/plain; charset=utf-8'), (b'content-length', str(len(body)).encode())]
        await send({'type': 'http.response.start', 'status': 421, 'headers': headers})
        await send({'type': 'http.response.body', 'body': body})

    def knows(self, host: str) -> bool:
        """Whether a `Host` header, `NAME[:PORT]`, names this machine."""
        try:
            name = urlsplit(f'//{host}').hostname or ''
        except ValueError:
            return False
        if name.removesuffix('.') in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
