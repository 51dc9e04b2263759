"""A headless Chromium for tests, driven over a pipe by the DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DRAWN_S = 30.0
"""Longest wait for a page to draw its plots."""
_ABOVE = 20
"""Descriptors from here on are nobody's, so moving them to 3 and 4 closes nothing in use."""


def binary() -> str:
    """The browser's path.

    Raises:
        FileNotFoundError: there is none.
    """
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        raise FileNotFoundError(
            f"none of {', '.join(NAMES)} is in PATH; run `make browser`, or install one"
        )
    return found


class Browser:
    """One browser process with one tab. Use as a context manager.

    Args:
        folder: for the browser's own files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked = 0
        self._pending = b""
        self.events: list[dict[str, Any]] = []
        """Everything that the browser told of the page since it was opened."""

    def __enter__(self) -> Browser:
        theirs_in, ours_out, ours_in, theirs_out = (
            fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for end in (*os.pipe(), *os.pipe())
        )
        command = [
            *(binary(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--remote-debugging-pipe", f"--user-data-dir={self._folder}", "about:blank"),
        ]
        # The browser reads commands from descriptor 3 and answers on 4.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in = ours_out, ours_in
        self._session: str | None = None
        tab = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=tab, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)
        os.close(self._out)
        os.close(self._in)

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Shows a file, without any network, and waits until its plots are drawn.

        Raises:
            TimeoutError: they are not.
        """
        self.events.clear()
        self._call("Network.emulateNetworkConditions", offline=True, **_NO_LIMITS)
        self.resize(width)
        self.scheme("dark" if dark else "light")
        self._call("Page.navigate", url=path.resolve().as_uri())
        end_s = time.monotonic() + DRAWN_S
        while self.value("document.documentElement?.dataset.drawn") != "yes":
            if time.monotonic() > end_s:
                raise TimeoutError(f"{path}: not drawn after {DRAWN_S:g} s; {self.complaints()}")
            time.sleep(0.05)

    def resize(self, width: int) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self._settle()

    def scheme(self, name: str) -> None:
        """The reader's preference: light or dark."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        self._settle()

    def value(self, expression: str) -> Any:
        """What an expression gives in the page; a promise is waited for.

        Raises:
            RuntimeError: it throws.
        """
        answer = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def pdf(self) -> bytes:
        """The page as it is printed."""
        answer = self._call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(answer["data"])

    def picture(self) -> bytes:
        """What is in the window, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and exceptions."""
        found = []
        for event in self.events:
            given = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(given["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                if given["type"] in ("error", "warning", "assert"):
                    found.append(json.dumps(given["args"]))
            elif event["method"] == "Log.entryAdded":
                found.append(str(given["entry"]["text"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        return [
            str(event["params"]["request"]["url"])
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _settle(self) -> None:
        """Waits for the page to answer what changed: it is told with the next frame."""
        frame = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
        self.value(f"{frame}.then(() => {frame})")

    def _call(self, method: str, **given: object) -> dict[str, Any]:
        self._asked += 1
        message: dict[str, object] = {"id": self._asked, "method": method, "params": given}
        if self._session is not None:
            message["sessionId"] = self._session
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self._out, rest) :]
        while True:
            answer = self._message()
            if answer.get("id") == self._asked:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            more = os.read(self._in, 1 << 20)
            if not more:
                raise RuntimeError("the browser ended; is it installed whole?")
            self._pending += more
        first, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message


_NO_LIMITS = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
