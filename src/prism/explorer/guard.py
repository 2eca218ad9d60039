"""What stands between a browser and the web explorer: this machine, its own addresses, and small questions only."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import PlainTextResponse

Message = MutableMapping[str, Any]
HOST = "127.0.0.1"  # nobody else's machine: what is typed here is the reader's own
PORTS = 20  # tried from the one asked for
LARGEST = 100_000  # bytes of a question; the page sends a few thousand
PAGES = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/gradio_api/info",
    "/gradio_api/startup-events",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)
FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/queue/", "/gradio_api/heartbeat/")
HEADERS = [  # nothing is loaded from, or sent to, any other place, and no other page may hold this one in a frame
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
        b"frame-ancestors 'self'; form-action 'self'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """ASGI middleware that refuses what the page never asks for: files, uploads, other addresses, large questions."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        """Answers 403 or 413 itself, or passes the request on and adds headers to the answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        app = self.app
        if scope["type"] == "http" and (refusal := _refusal(scope)):
            app = refusal
        elif scope["type"] == "websocket":
            app = PlainTextResponse("There are no web sockets here.", 403)
        await app(scope, receive, send_with_headers)


def _refusal(scope: Message) -> PlainTextResponse | None:
    path, headers = scope["path"], dict(scope["headers"])
    if path not in PAGES and not path.startswith(FOLDERS) or any(mark in path for mark in ("..", ":", "\\")):
        return PlainTextResponse("There is nothing at this address.", 403)
    if scope["method"] not in ("GET", "HEAD", "POST"):
        return PlainTextResponse("This page is only read and asked.", 405)
    if scope["method"] == "POST":
        length = headers.get(b"content-length", b"")
        if b"transfer-encoding" in headers or not length.isdigit() or int(length) > LARGEST:
            return PlainTextResponse("The question is too long.", 413)
    return None


def listen(port: int) -> socket.socket:
    """A listening socket on that port, or on the next free one; on this machine's own address only.

    Raises:
        OSError: none of `PORTS` ports is free, or there is no such port.
    """
    if not 0 <= port <= 65_535:
        raise OSError(f"there is no port {port}; choose from 1024 to 65535, or 0 for any that is free")
    for candidate in range(port, min(port + PORTS, 65_536)):
        server = socket.socket()
        exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)  # Windows, where REUSEADDR would share a taken port
        server.setsockopt(socket.SOL_SOCKET, exclusive or socket.SO_REUSEADDR, 1)
        try:
            server.bind((HOST, candidate))
            server.listen()
            return server
        except OSError as error:
            server.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise OSError(f"the ports {port} to {candidate} are taken or not allowed; choose another with --port")
