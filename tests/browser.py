"""A headless Chromium, spoken to by its own debugging protocol: what a person would do on a page, and what they see."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian's package chromium)")
START_S = 60.0


class Tab:
    """A page that is open."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.number = socket, 0
        self.told: list[str] = []
        """What the page's console said, errors among it."""

    async def send(self, method: str, **given: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": given})
        while True:
            message = await self.socket.receive_json()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return dict(message["result"])
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.told.append(json.dumps(message["params"]))

    async def run(self, script: str) -> Any:
        """The value of an expression on the page."""
        found = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str, seconds: float = 30.0) -> None:
        """Wait for an expression to be true."""
        end = time.monotonic() + seconds
        while not await self.run(f"!!({script})"):
            assert time.monotonic() < end, f"waited in vain for {script}"
            await asyncio.sleep(0.1)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Tab]:
    """Open a page in a Chromium of the test's own, which ends with it."""
    assert CHROMIUM
    with tempfile.TemporaryDirectory() as profile:
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command = [CHROMIUM, *words, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                port = await _port(Path(profile))
                async with aiohttp.ClientSession() as session:
                    async with session.get(f"http://127.0.0.1:{port}/json") as reply:
                        (target,) = [one for one in await reply.json() if one["type"] == "page"]
                    async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=2**26) as socket:
                        tab = Tab(socket)
                        for domain in ("Page", "Runtime", "Log"):
                            await tab.send(f"{domain}.enable")
                        await tab.send("Page.navigate", url=url)
                        await tab.until("document.readyState === 'complete' && location.href !== 'about:blank'")
                        yield tab
            finally:
                process.terminate()
                process.wait(timeout=30)


async def _port(profile: Path) -> int:
    """The port that Chromium chose, as it writes it down."""
    end = time.monotonic() + START_S
    file = profile / "DevToolsActivePort"
    while not (file.exists() and "\n" in file.read_text()):
        assert time.monotonic() < end, "Chromium did not start"
        await asyncio.sleep(0.1)
    return int(file.read_text().splitlines()[0])
