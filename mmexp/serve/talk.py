"""Between the event loop and the thread that answers: one request from its body to its last piece."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from mmexp.contracts import Item
from mmexp.serve.batcher import Batcher, Done, Event, Job, Piece
from mmexp.serve.errors import ApiError
from mmexp.serve.prompts import PromptMaker
from mmexp.serve.replies import Reply, event
from mmexp.serve.request import ChatRequest, read_request
from mmexp.serve.settings import ServeConfig

if TYPE_CHECKING:
    from mmexp.engine import Generator

_T = TypeVar("_T")
_PROMPT_THREADS = 2
"""Requests whose pictures are decoded at the same time."""


class Talk:
    """One request that is admitted; `close` must be called at its end.

    Args:
        desk: Where it was admitted.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.started = time.monotonic()
        self.deadline = self.started + desk.config.timeout_s
        self.num_prompt_tokens = self.num_tokens = 0
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._job: Job | None = None
        self._is_open = True

    async def ask(self, body: bytes) -> ChatRequest:
        """Reads a request and queues its prompt. Raises ApiError."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._desk.pool, self._desk.prepare, body)
        request, item, max_tokens = await self._in_time(work)
        self.num_prompt_tokens = len(item.input_ids)

        def hand_over(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server was told twice to end
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._job = Job(item=item, sampling=request.sampling(max_tokens), stops=request.stops, deadline=self.deadline,
                        on_event=hand_over)  # fmt: skip
        self._desk.batcher.put(self._job)
        return request

    async def next(self) -> Piece | Done:
        """The next event of the answer. Raises ApiError when there is none in time."""
        found = await self._in_time(self._events.get())
        if isinstance(found, ApiError):
            raise found
        if isinstance(found, Done):
            self.num_tokens = found.num_tokens
        return found

    async def whole(self) -> tuple[str, Done]:
        """The whole answer. Raises ApiError as `next`."""
        pieces: list[str] = []
        while isinstance(found := await self.next(), Piece):
            pieces.append(found.text)
        return "".join(pieces), found

    async def stream(self, request: ChatRequest, first: Piece | Done) -> AsyncIterator[bytes]:
        """The answer as server-sent events; an error after the first of them is one of them."""
        reply, found = self.reply(), first
        try:
            yield reply.chunk({"role": "assistant", "content": ""})
            while isinstance(found, Piece):
                yield reply.chunk({"content": found.text})
                found = await self.next()
            yield reply.chunk({}, found.finish)
            if request.include_usage:
                yield reply.usage_chunk(found.num_tokens)
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield event(error.body())

    def reply(self) -> Reply:
        """The form of the answer."""
        return Reply(model=self._desk.model, num_prompt_tokens=self.num_prompt_tokens)

    def close(self) -> None:
        """Gives the place free; an answer that is still made ends."""
        if self._is_open:
            self._is_open = False
            self._desk.num_active -= 1
            if self._job is not None:
                self._job.left.set()
                self._job = None  # it holds pictures, and knows this object

    async def _in_time(self, work: Awaitable[_T]) -> _T:
        try:
            return await asyncio.wait_for(work, self.deadline - time.monotonic())
        except TimeoutError:
            limit = f"{self._desk.config.timeout_s:g} s"
            if self._job is not None and self._job.is_started:
                raise ApiError(504, f"no complete answer within {limit}: ask for fewer tokens", "timeout") from None
            raise ApiError(503, f"not begun within {limit}, the server is busy: try later", "timeout") from None


class Desk:
    """Admits requests, up to a number, and knows what they are answered with.

    Args:
        generator: The model.
        config: Settings and limits.
        model: Its name.
    """

    def __init__(self, generator: Generator, config: ServeConfig, model: str) -> None:
        self.config, self.model, self.created = config, model, int(time.time())
        self.prompts = PromptMaker(generator.plan, config)
        self.batcher = Batcher(generator, config.max_batch, config.exact)
        self.pool = ThreadPoolExecutor(_PROMPT_THREADS, "prompts")
        self.num_active = 0

    def admit(self) -> Talk:
        """A place for a request. Raises ApiError when all are taken."""
        if self.num_active >= self.config.max_queue:
            raise ApiError(429, f"{self.num_active} requests are waiting here already: try later", "queue_full")
        self.num_active += 1
        return Talk(self)

    def prepare(self, body: bytes) -> tuple[ChatRequest, Item, int]:
        """A request, its prompt and the longest answer. Raises ApiError."""
        request = read_request(body, self.model, self.config)
        item, max_tokens = self.prompts.make(request)
        return request, item, max_tokens

    def close(self) -> None:
        """Ends the threads when what they do is done."""
        self.pool.shutdown(cancel_futures=True)
        self.batcher.close()
