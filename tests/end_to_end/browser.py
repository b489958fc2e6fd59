"""A headless Chromium for tests: opens a page, watches what it asks for and complains of, runs scripts, takes pictures.

It is driven over the pipe of the DevTools protocol, so that neither a driver nor a port is needed.
"""

import base64
import contextlib
import io
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # containers give root no user namespaces
    "--disable-dev-shm-usage",
    "--disable-gpu-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--window-size=1000,800",
)
# Launches the browser with its two pipe ends as descriptors 3 and 4, as it expects them.
_LAUNCH = 'exec 3<&"$0" 4>&"$1"; shift 1; exec "$@"'


def chromium() -> str:
    """The program: that of LAMPSEG_CHROMIUM, else the first of its usual names."""
    found = os.environ.get("LAMPSEG_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert found, f"no browser ({', '.join(NAMES)}): install Chromium, or set LAMPSEG_CHROMIUM to its path"
    return found


class Browser:
    """One page of a browser. `requests` are the addresses it asked for, `complaints` what its console said."""

    def __init__(self, pipe_in: int, pipe_out: int) -> None:
        self._in, self._out = pipe_in, pipe_out
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, limit: float = 60.0, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + limit
        while True:
            answer = self._next(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, page: Path) -> None:
        """Loads a file; what the page asks for and complains of is noted from here on."""
        self.requests.clear()
        self.complaints.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, script: str, *, limit: float = 60.0) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + limit
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"still not: {script}; the console said {self.complaints}"
            time.sleep(0.05)

    def picture(self, selector: str | None = None, *, file: Path | None = None) -> np.ndarray:
        """What is seen, as (rows, columns, RGB): of an element, or without one of the window."""
        settled = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        clip: dict[str, Any] = {}
        if selector is not None:
            self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
            self.run(settled)
            box = self.run(
                f"(r => ({{x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height}}))"
                f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
            )
            clip = {"clip": {**box, "scale": 1}}
        self.run(settled)
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png", **clip)["data"])
        if file is not None:
            file.write_bytes(data)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._out, 1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        line, self._rest = self._rest.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(line)
        self._note(answer.get("method", ""), answer.get("params", {}))
        return answer

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(event["url"])
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.complaints.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.complaints.append(event["entry"]["text"])


@contextlib.contextmanager
def browser(profile: Path, *, flags: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser with a new profile in the given folder; it and all its processes end with the context."""
    profile.mkdir(parents=True, exist_ok=True)
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    command = [chromium(), *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
    with (profile / "stderr.txt").open("wb") as errors:
        process = subprocess.Popen(
            ["bash", "-c", _LAUNCH, str(from_us), str(to_us), *command],
            pass_fds=(from_us, to_us),
            stdout=errors,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, "HOME": str(profile)},
        )
    os.close(from_us)
    os.close(to_us)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        os.close(to_browser)
        os.close(from_browser)
