"""What every answer of the browser has, and its plain pages for whatever is no page of a run."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage.errors import LONGEST, FloodlitError, one_line
from tasks.page.rendering import render

_FENCE = {
    # Pages hold styles and pictures of their own, and no script but that of their head.
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_WRONG = {
    404: "There is no such page. The address that the terminal shows is that of all samples.",
    405: "Pages are only read here; nothing can be sent.",
}


class Fenced:
    """Gives every answer the headers of the fence, refusals included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _FENCE.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, sent)


def _plain(status: int, told: str) -> Response:
    """A page of one line."""
    page = render("browser_refusal.html", title=HTTPStatus(status).phrase, told=told)
    return HTMLResponse(page, status, headers=_FENCE)


def _refusal(_: Request, error: Exception) -> Response:
    """The page of an address that is none."""
    assert isinstance(error, HTTPException)
    answer = _plain(error.status_code, _WRONG.get(error.status_code, error.detail))
    answer.headers.update(error.headers or {})
    return answer


def _damage(_: Request, error: Exception) -> Response:
    """The page of files that cannot be read."""
    return _plain(500, one_line(error, LONGEST))


def _fault(*_: Any) -> Response:
    """The page of a fault in this program, whose trace is on the terminal."""
    return _plain(500, "The browser has a fault, which its terminal shows.")


REFUSALS: dict[Any, Callable[[Request, Exception], Response]] = {
    HTTPException: _refusal,
    FloodlitError: _damage,
    OSError: _damage,
    Exception: _fault,
}
