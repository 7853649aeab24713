"""The page as a process: nothing of it comes from elsewhere, and nothing goes there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmexp.demo.desk import Desk
from mmexp.demo.examples import Example
from mmexp.demo.guard import Guard
from mmexp.serve.server import address, listen

log = logging.getLogger(__name__)
_GRACE_S = 1
"""Open pages hold a connection for good, so the end does not wait for them."""


def run(desk: Desk, examples: Sequence[Example], listener: socket.socket, auth: tuple[str, str] | None) -> None:
    """Shows the page until SIGTERM or Ctrl-C; pictures that were uploaded are gone afterwards."""
    with TemporaryDirectory(prefix="mmexp_demo_") as folder:
        _close_environment(folder)
        try:
            app = build_app(desk, examples, Path(folder), auth)
            log.info("%s at %s (Ctrl-C ends it)", " and ".join(one.name for one in desk.speakers), address(listener))
            listen(app, listener, _GRACE_S, lifespan="on")
        finally:
            desk.close()
    log.info("ending")


def build_app(desk: Desk, examples: Sequence[Example], folder: Path, auth: tuple[str, str] | None) -> Any:
    """The application: the page, the password in front of it, and the rule that keeps browsers here."""
    import gradio as gr
    from fastapi import FastAPI
    from gradio.themes import Soft

    from mmexp.demo.page import CSS, Page

    plain = Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        Page(desk, examples, folder).build(),
        path="/",
        auth=[auth] if auth else None,
        max_file_size=int(desk.limits.max_image_mb * 2**20),
        show_error=False,
        footer_links=[],
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        theme=plain,
        css=CSS,
    )
    return Guard(app, folder)


def _close_environment(folder: str) -> None:
    """Gradio takes address, tunnel, telemetry and folders from the environment; here the command alone decides."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
