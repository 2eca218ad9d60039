"""What stands between a browser and the web explorer: only its own addresses, only small questions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import PlainTextResponse

Message = MutableMapping[str, Any]
LARGEST = 100_000  # bytes of a question; the page sends a few thousand
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/info",
         "/gradio_api/startup-events", "/gradio_api/cancel", "/gradio_api/reset")  # fmt: skip
FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/queue/", "/gradio_api/heartbeat/")
HEADERS = [  # nothing is loaded from, or sent to, any other place, and no other page may hold this one in a frame
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
                                 b"frame-ancestors 'self'; form-action 'self'; object-src 'none'"),
    (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
]  # fmt: skip


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
    if path not in PAGES and not path.startswith(FOLDERS) or ".." in path:
        return PlainTextResponse("There is nothing at this address.", 403)
    if scope["method"] not in ("GET", "HEAD", "POST"):
        return PlainTextResponse("This page is only read and asked.", 405)
    if scope["method"] == "POST":
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length) > LARGEST:
            return PlainTextResponse("The question is too long.", 413)
    return None
