"""The socket, and the process that listens at it until it is told to end."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Iterator
from typing import Any, Literal

import uvicorn

from mmexp.errors import ConfigError
from mmexp.serve.app import build_app
from mmexp.serve.talk import Desk

log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, before a model is loaded in vain.

    Raises:
        ConfigError: the port is in use or not allowed, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"{host!r} ({error.strerror})", expected="an address of this machine", where="host",
                          fix="host=127.0.0.1, or host=0.0.0.0 for all of them") from error  # fmt: skip
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()  # two that are bound but do not listen would not notice each other
    except OSError as error:
        listener.close()
        where = "host" if error.errno == errno.EADDRNOTAVAIL else "port"
        found = f"{port} is in use" if error.errno == errno.EADDRINUSE else f"{host}:{port} ({error.strerror})"
        raise ConfigError(found, expected="a free port" if where == "port" else "an address of this machine",
                          where=where, fix="port=0 takes a free one") from error  # fmt: skip
    return listener


def run(desk: Desk, listener: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C; then nothing new is accepted, and what runs is finished."""
    if not is_own(listener):
        log.warning("every machine that reaches %s can use this model, without a key", listener.getsockname()[0])
    log.info("serving %s at %s/v1 (Ctrl-C ends it)", desk.model, address(listener))
    listen(build_app(desk), listener, math.ceil(desk.config.timeout_s) + 1)
    log.info("ending: %d answers in %d batches", desk.batcher.num_answers, desk.batcher.num_batches)
    desk.close()


def listen(app: Any, listener: socket.socket, grace_s: int, lifespan: Literal["on", "off"] = "off") -> None:
    """Serves an ASGI application until SIGTERM or Ctrl-C.

    Args:
        app: The application.
        listener: As `bind` gives it.
        grace_s: How long what runs then may go on.
        lifespan: Whether the application has something to do at the start and the end.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=grace_s,
    )
    _Server(config).run(sockets=[listener])


def address(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_own(listener: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


class _Server(uvicorn.Server):
    """Takes a signal as a wish to end, which is no failure; uvicorn would raise it again and end with its code."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before: dict[int, Any] = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
