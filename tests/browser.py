"""A headless Chromium for tests, spoken to through a pair of pipes: no driver, no port, no further package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_TIMEOUT_S = 60


class Browser:
    """One tab. Errors that the page's script raises make the next call fail."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, of: int) -> None:
        self.process, self._to, self._of = process, to, of
        self._number, self._rest, self._session = 0, b"", None
        self.errors: list[str] = []
        self.known: tuple[str, ...] = ("file:", "data:", "about:")
        """What addresses that the page may ask for begin with."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, file: Path) -> float:
        """Loads a local file; returns the seconds until its scripts had run and it was laid out."""
        return self._load(file.resolve().as_uri())

    def visit(self, address: str) -> float:
        """As `open` with a page of a server, which may ask for more at the same address."""
        self.known = (*self.known, address, "blob:")
        return self._load(address)

    def _load(self, url: str) -> float:
        began = time.monotonic()
        self._call("Page.navigate", url=url)
        while self.run("document.readyState") != "complete":
            time.sleep(0.01)
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        return time.monotonic() - began

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """The window in CSS pixels, and the user's preference."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                   mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        assert not self.errors, self.errors
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element that matches."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView({{block: 'center'}})")
        where = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({found}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def choose(self, selector: str, value: str) -> None:
        """Takes an entry of a select, or types into a field, as the page's listeners see it."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            " for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def type(self, selector: str, text: str) -> None:
        """Clicks a field and types."""
        self.click(selector)
        self._call("Input.insertText", text=text)

    def upload(self, selector: str, *files: Path) -> None:
        """Chooses files in a file field, hidden or not."""
        found = self._call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self._call("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found["result"]["objectId"])

    def wait(self, script: str, timeout_s: float = 30) -> None:
        """Returns as soon as an expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"never true: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)

    def screenshot(self, file: Path, whole: bool = True) -> None:
        """A PNG of the whole page, or of the window."""
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            self._note(answer)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(" ".join((params["entry"]["text"], params["entry"].get("url", ""))))
        url = params.get("request", {}).get("url", "") if event.get("method") == "Network.requestWillBeSent" else ""
        if url and not url.startswith(self.known):
            self.errors.append(f"the page asks for {url}")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._of], [], [], _TIMEOUT_S)
            data = os.read(self._of, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)


def find_browser() -> str | None:
    """The program, None where there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile in `profile`; skips the test where there is none."""
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed")
    from_us, to = os.pipe()
    of, from_it = os.pipe()
    # the browser reads from descriptor 3 and writes to 4
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", f"--user-data-dir={profile}", "--remote-debugging-pipe"]  # fmt: skip
    start = f'exec 3<&{from_us} 4>&{from_it}; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", start, "bash", program, *flags],
        pass_fds=(from_us, from_it),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(from_us)
    os.close(from_it)
    try:
        yield Browser(process, to, of)
    finally:
        os.write(to, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")  # ends its children first
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(to)
        os.close(of)
