"""The server of the page: static files, and an API that only the page of the printed address can use.

The page of another site reaches a server on loopback too, by a name that it resolves to 127.0.0.1. So the Host and the
Origin of a request must be this server's, and the API needs the random token of the address. By its
Content-Security-Policy the page loads and runs nothing but its own files.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from hmac import compare_digest
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minillm.errors import InputError
from minillm.play.page import Page, View

STATIC, MOST_BYTES = Path(__file__).parent / "static", 64 * 2**10
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
HEADERS = {
    "content-security-policy": POLICY + "form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin", "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer", "cache-control": "no-store",
}  # fmt: skip


def application(page: Page, token: str, hosts: Collection[str]) -> ASGIApp:
    """The page and its API, for requests whose Host is in `hosts`."""
    lock = asyncio.Lock()

    async def about(request: Request) -> Response:
        return JSONResponse(page.about)

    async def look(request: Request) -> Response:
        view = await _view(request)
        async with lock:
            return JSONResponse(await run_in_threadpool(page.look, view))

    async def chat(request: Request) -> Response:
        pieces = page.answer(await _view(request))

        async def next_piece() -> str | None:
            async with lock:
                return await run_in_threadpool(next, pieces, None)

        async def streamed(piece: str | None) -> AsyncIterator[str]:
            while piece is not None:
                yield piece
                piece = await next_piece()

        # The first piece comes before the response, so that messages that cannot be answered are an error.
        return StreamingResponse(streamed(await next_piece()), media_type="text/plain")

    routes = [Route("/api/about", about), Route("/api/look", look, methods=["POST"])]
    routes.append(Route("/api/chat", chat, methods=["POST"]))
    files = Mount("/", StaticFiles(directory=STATIC, html=True))
    return guarded(Starlette(routes=[*routes, files], exception_handlers={InputError: _refused}), token, hosts)


async def _view(request: Request) -> View:
    """The view in a request's JSON. Raises InputError for anything else."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise InputError(f"a request may have {MOST_BYTES} bytes")
    try:
        return View(**json.loads(body))
    except (TypeError, UnicodeError, json.JSONDecodeError, RecursionError):
        raise InputError("a request must be a JSON object with the fields of the page") from None


def _refused(request: Request, problem: Exception) -> Response:
    return JSONResponse({"error": str(problem)}, 422)


def guarded(app: ASGIApp, token: str, hosts: Collection[str]) -> ASGIApp:
    """Refuses requests that are not of this server's page, and adds the headers to every response."""

    def problem(scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        if (host := headers.get("host")) not in hosts or headers.get("origin") not in (None, f"http://{host}"):
            return "requests of other pages are refused"
        right = compare_digest(headers.get("x-token", "").encode(), token.encode())
        return None if right or not scope["path"].startswith("/api/") else "the token of the address is wrong"

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        found = problem(scope) if scope["type"] == "http" else None
        await (app if found is None else PlainTextResponse(found, 403))(scope, receive, send_with_headers)

    return answer
