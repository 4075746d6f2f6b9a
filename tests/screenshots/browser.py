"""
Chromium without a screen, by the DevTools protocol: open a page, wait for it, take its picture.
"""

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LIMIT = 60  # seconds for the browser to start, and for what is waited for
MAX_MESSAGE = 32 << 20  # bytes; a picture comes as one


class BrowserError(Exception):
    """There is no browser, or the page did not become what it should; one sentence."""


def program() -> str | None:
    """The browser of this machine: $TOLLGATE_BROWSER, else Chromium or Chrome on the path."""
    return os.environ.get("TOLLGATE_BROWSER") or next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page:
    """One page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; events in between are of no interest."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(LIMIT):
            while True:
                answer = await self._socket.receive_json()
                if answer.get("id") == number:
                    if "error" in answer:
                        raise BrowserError(f"{method}: {answer['error'].get('message')}")
                    return dict(answer["result"])

    async def size(self, width: int, height: int, scale: float = 1) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{script}: {found['exceptionDetails'].get('text')}")
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until the expression is true."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            with contextlib.suppress(BrowserError):  # of a page that is still loading
                if await self.run(condition):
                    return
            await asyncio.sleep(0.1)
        raise BrowserError(f"the page did not get so far in {LIMIT} s: {condition}")

    async def picture(self) -> bytes:
        """PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


@contextlib.asynccontextmanager
async def page(folder: Path) -> AsyncIterator[Page]:
    """A page of a browser whose files are in `folder`, until the block ends."""
    browser = program()
    if browser is None:
        raise BrowserError("this machine has no Chromium; install it, or name a browser in TOLLGATE_BROWSER")
    profile = folder / "profile"
    # Its sandbox does not work for root, who is alone in a container or a throwaway machine.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with (folder / "browser.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            browser, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run",
            "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage", "--disable-background-networking",
            "--disable-component-update", *flags, "about:blank",
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        port = await _port(process, profile)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                targets = await answer.json()
            url = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            async with session.ws_connect(url, max_msg_size=MAX_MESSAGE) as socket:
                yield Page(socket)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        ended = asyncio.ensure_future(process.wait())
        if not (await asyncio.wait({ended}, timeout=10))[0]:
            process.kill()
            await ended


async def _port(process: asyncio.subprocess.Process, profile: Path) -> int:
    """The port that the browser has taken, once it says so."""
    said = profile / "DevToolsActivePort"
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise BrowserError(f"the browser left with {process.returncode}")
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(said.read_text().splitlines()[0])
        await asyncio.sleep(0.1)
    raise BrowserError(f"the browser did not start in {LIMIT} s")
