"""The routes. This file and `server.py` alone need FastAPI and uvicorn."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from mmexp.serve.batcher import place_of
from mmexp.serve.errors import ApiError
from mmexp.serve.replies import model_card, models
from mmexp.serve.settings import MIB
from mmexp.serve.talk import Desk, Talk

log = logging.getLogger(__name__)
_T = TypeVar("_T")


def build_app(desk: Desk) -> FastAPI:
    """The application; it has no pages of documentation, for they would load scripts from elsewhere."""
    app = FastAPI(title="mmexp", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> JSONResponse:
        is_well = desk.batcher.thread.is_alive()
        state = {"status": "ok" if is_well else "failed", "active": desk.num_active}
        return JSONResponse(state, 200 if is_well else 503)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return models(desk.model, desk.created)

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        if name != desk.model:
            raise ApiError(404, f"this server has the model {desk.model!r} only", "model_not_found", "model")
        return model_card(desk.model, desk.created)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _chat(desk, request)

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> JSONResponse:
        return _refusal(error)

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        known = "POST /v1/chat/completions, GET /v1/models, GET /health"
        return _refusal(ApiError(error.status_code, f"{error.detail}: there are {known}", "unknown_route"))

    return app


class _Stream(StreamingResponse):
    """An answer in pieces, whose request is over when it is, however it ends."""

    def __init__(self, content: Any, over: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._over = over

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self._over()


async def _chat(desk: Desk, request: Request) -> Response:
    """One request, admitted, answered and logged; the log has no word of it."""
    start, talk, status = time.monotonic(), None, 200

    def over() -> None:
        if talk is not None:
            talk.close()
        counts = f", {talk.num_prompt_tokens} + {talk.num_tokens} tokens" if talk and talk.num_prompt_tokens else ""
        log.info("chat %s%s, %.2f s", status, counts, time.monotonic() - start)

    is_handed_on = False
    try:
        talk = desk.admit()
        response = await _answer(talk, request, desk.config.max_body_mb, over)
        is_handed_on = isinstance(response, _Stream)
        return response
    except ApiError as error:
        status = f"{error.status} {error.code}"
        raise
    except Exception as error:
        status = 500
        log.error("a request failed: %s", place_of(error))
        raise ApiError(500, "the server failed on this request; its log says where", "internal") from None
    finally:
        if not is_handed_on:
            over()


async def _answer(talk: Talk, request: Request, max_body_mb: float, over: Callable[[], None]) -> Response:
    asked = await talk.ask(await _body(request, talk, max_body_mb))
    if asked.stream:
        first = await _unless_gone(request, talk.next())
        return _Stream(talk.stream(asked, first), over)
    text, done = await _unless_gone(request, talk.whole())
    return JSONResponse(talk.reply().whole(text, done.finish, done.num_tokens))


async def _body(request: Request, talk: Talk, max_mb: float) -> bytes:
    """The body, within its limits. Raises ApiError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the content type is {kind[:60]!r}: expected application/json", "unsupported_media_type")
    too_large = ApiError(413, f"the request is larger than {max_mb:g} MiB", "request_too_large")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > max_mb * MIB:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(talk.deadline - time.monotonic()):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_mb * MIB:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, "the request did not arrive in time", "timeout") from None
    return bytes(body)


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """What `work` gives. Raises ApiError when the client leaves before."""
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ApiError(499, "the client has left", "client_closed_request")
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


def _refusal(error: ApiError) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body(), error.status, headers)
