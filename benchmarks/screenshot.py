"""How a page looks in a real browser: the whole of it as a PNG, and whether it fits the width.

    python benchmarks/screenshot.py PAGE.html OUT.png [--width 390] [--open]

Needs a Chromium or Chrome on the PATH, and nothing else: it is spoken to through a pair of pipes, in its DevTools protocol.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TALLEST = 16000  # pixels; what browsers can draw in one picture
MEASURE = """JSON.stringify({
  content: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
  broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
  wide: [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1
    && !e.closest('.wide, pre, svg')).map(e => e.tagName + ' ' + e.className).slice(0, 5),
  text: document.body.innerText})"""


@dataclass(frozen=True)
class Seen:
    """What the browser says of a page. Lengths in CSS pixels."""

    width: int
    content: int  # width that the content asks for: more than ``width`` means a scroll bar across the page
    height: int
    broken: int  # pictures that don't show
    wide: list[str]  # elements that stick out
    text: str
    errors: list[str]  # of the console


def browser() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def screenshot(page: Path, png: Path, width: int = 1280, unfold: bool = False) -> Seen:
    """Open the page at this width and save all of it.

    Args:
        page: an HTML file.
        png: what is written.
        width: of the window, CSS pixels.
        unfold: open every ``<details>`` first.
    """
    with _talk() as call:
        target = call("Target.createTarget", url="about:blank")["targetId"]
        session = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        call("Runtime.enable", session)
        call("Page.enable", session)
        call("Emulation.setDeviceMetricsOverride", session, width=width, height=900, deviceScaleFactor=1, mobile=False)
        call("Page.navigate", session, url=page.resolve().as_uri())
        wait = "new Promise(done => { const look = () => document.readyState == 'complete' ? done(1) : setTimeout(look, 50); look() })"
        call("Runtime.evaluate", session, expression=wait, awaitPromise=True)
        if unfold:
            call("Runtime.evaluate", session, expression="document.querySelectorAll('details').forEach(d => d.open = true)")
        found = json.loads(call("Runtime.evaluate", session, expression=MEASURE, returnByValue=True)["result"]["value"])
        clip = {"x": 0, "y": 0, "width": width, "height": min(found["height"], TALLEST), "scale": 1}
        picture = call("Page.captureScreenshot", session, format="png", captureBeyondViewport=True, clip=clip)
        png.write_bytes(base64.b64decode(picture["data"]))
        return Seen(width, errors=call.errors, **found)


class _Caller:
    """Sends commands and waits for their answers; what the console says in between is kept."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing, self.number, self.rest = reading, writing, 0, b""
        self.errors: list[str] = []

    def __call__(self, method: str, session: str = "", **parameters: object) -> dict[str, Any]:
        self.number += 1
        message: dict[str, object] = {"id": self.number, "method": method, "params": parameters}
        os.write(self.writing, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            if answer.get("method") == "Runtime.exceptionThrown" or answer.get("params", {}).get("type") == "error":
                self.errors.append(json.dumps(answer["params"]))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            more = os.read(self.reading, 1 << 20)
            if not more:
                raise RuntimeError("The browser has gone; does it start by hand?")
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        return dict(json.loads(message))


@contextmanager
def _talk() -> Iterator[_Caller]:
    """A browser that reads commands from its file descriptor 3 and answers on 4."""
    program = browser()
    if program is None:
        raise RuntimeError(f"No browser on the PATH: {', '.join(BROWSERS)}.")
    commands, ours_out = os.pipe()
    ours_in, answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-background-networking"]
        place = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'  # dup to the two numbers that the browser expects
        arguments = ["bash", "-c", place, str(commands), str(answers), program, *flags]
        process = subprocess.Popen(arguments, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        try:
            call = _Caller(ours_in, ours_out)
            yield call
            call("Browser.close")
        finally:
            os.close(ours_out)
            os.close(ours_in)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--open", action="store_true", help="with every folded part open")
    given = parser.parse_args()
    seen = screenshot(given.page, given.png, given.width, given.open)
    print(
        f"{given.png}: {seen.width} x {seen.height}; content {seen.content} wide; {seen.broken} broken pictures; {seen.wide} {seen.errors}"
    )
    sys.exit(seen.content > seen.width or seen.broken > 0 or bool(seen.errors))


if __name__ == "__main__":
    main()
