"""
A mitmproxy script for tests: makes hooks of the addons raise while the gateway runs, and says when they did.

The file named by TOLLGATE_TEST_FAULT has a line `ADDON HOOK [SIDE]` for each hook to break; SIDE is
`client` or `server` and breaks a frame hook for what that side sent only. Beside it, `.armed` gets the same
text once that is done, and `.fired` a line for each time that a broken hook ran.
"""

import asyncio
import contextlib
import os
from pathlib import Path

from mitmproxy import ctx

LOOK_AGAIN = 0.02  # seconds


def sent_by(flow) -> str:
    """Which side sent the frame that is being handled."""
    messages = flow.websocket.messages if getattr(flow, "websocket", None) else flow.messages
    return "client" if messages[-1].from_client else "server"


class Faults:
    name = "tollgate_test_faults"

    def __init__(self) -> None:
        self.file = Path(os.environ["TOLLGATE_TEST_FAULT"])
        self.text = ""
        self.broken: list[tuple[object, str]] = []

    def running(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.keep_looking())

    def done(self) -> None:
        self.task.cancel()

    async def keep_looking(self) -> None:
        while True:
            if (text := self.file.read_text()) != self.text:
                self.apply(text)
            await asyncio.sleep(LOOK_AGAIN)

    def apply(self, text: str) -> None:
        for addon, hook in self.broken:
            with contextlib.suppress(AttributeError):
                delattr(addon, hook)
        self.broken = []
        self.file.with_suffix(".fired").write_text("")
        for name, hook, *side in map(str.split, text.splitlines()):
            addon = ctx.master.addons.get(name)
            setattr(addon, hook, self.breaking(name, hook, side, getattr(addon, hook)))
            self.broken.append((addon, hook))
        self.text = text
        self.file.with_suffix(".armed").write_text(text)

    def breaking(self, name, hook, side, original):
        def raises(*args):
            if side and sent_by(args[0]) not in side:
                return original(*args)
            with self.file.with_suffix(".fired").open("a") as fired:
                fired.write(f"{name} {hook}\n")
            raise RuntimeError("fault injected by a test")

        return raises


addons = [Faults()]
