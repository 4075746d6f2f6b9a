"""
The first ten minutes: the README's "A first blocked command", done as it says, with the demo's own
cluster, the file that it writes for MCP clients, and the commands that it prints.
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from addons.net.files import private_folder
from tests.cluster.controlplane import base_environment
from tests.e2e import gateway
from tests.mcpservers import host, servers

pytestmark = [pytest.mark.e2e, pytest.mark.mcp]

README = (gateway.ROOT / "README.md").read_text()
SECTION = README.split("\n## A first blocked command\n")[1].split("\n## ")[0]
START_LIMIT = 120  # seconds; 15 are usual
NAMESPACE_SHOP = servers.Call("resources_delete", {"apiVersion": "v1", "kind": "Namespace", "name": "shop"})


def environment(folder: Path) -> dict[str, str]:
    """Of somebody who has no cluster and no kubeconfig."""
    kept = {name: os.environ[name] for name in ("TOLLGATE_CACHE", "XDG_CACHE_HOME") if name in os.environ}
    cache = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))}
    return base_environment(folder) | cache | kept | {"PYTHONPATH": str(gateway.ROOT)}


class Demo:
    """`./run.sh demo`, running; and what it printed."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], output: Path) -> None:
        self.folder, self.process, self.output = folder, process, output

    @property
    def text(self) -> str:
        return self.output.read_text()

    def named(self, word: str) -> Path:
        """The file on the line that begins with this."""
        return Path(re.search(rf"^{word} +(\S+?):? ", self.text, re.MULTILINE)[1].removesuffix(":"))

    def run(self, line: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """A line that it printed; run.sh is this program, whose environment is made already."""
        words = shlex.split(line)
        if words[0].endswith("run.sh"):
            words[:1] = [sys.executable, "-m", "addons.cli"]
        return subprocess.run(
            words,
            env=environment(self.folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("demo"), gateway.free_port()
    state = private_folder(folder / "demo")
    # Compiled already, as at every start but the first.
    shutil.copytree(gateway.patterns(), private_folder(state / "state") / "patterns")
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "addons.cli", "demo", "--listen", f"127.0.0.1:{port}", "--state", str(state)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(folder),
            start_new_session=True,
        )
    one = Demo(folder, process, output)
    try:
        deadline = time.monotonic() + START_LIMIT
        while "Ctrl-C ends the demo." not in one.text:
            assert process.poll() is None, one.text
            assert time.monotonic() < deadline, one.text
            time.sleep(0.1)
        yield one
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert one.text.rstrip().endswith("tollgate: demo ended")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait(10)


def test_the_readme_shows_what_is_written(demo):
    """Up to the folder, which is everybody's own; and with the words that the demo prints."""
    shown = json.loads(re.search(r"```json\n(.*?)```", SECTION, re.DOTALL)[1])["mcpServers"]["kubernetes"]
    written = json.loads(demo.named("MCP client").read_text())["mcpServers"]["kubernetes"]
    *same, file = shown["args"]
    *these, own = written["args"]
    assert (shown["command"], same, Path(file).name) == (written["command"], these, Path(own).name)
    assert "`MCP client`" in SECTION
    assert "`./run.sh demo`" in SECTION


async def test_the_model_is_told_no_and_waits_for_a_yes(demo):
    """Step by step, and the commands that the demo prints in between."""
    server = servers.KubernetesMCPServer()
    entry = json.loads(demo.named("MCP client").read_text())["mcpServers"]["kubernetes"]
    command = [*server.command(), *entry["args"][2:]]  # npx has it in the cache of the tests
    (approving,) = re.findall(r"^  # +(\S+run\.sh approvals) watch -i (--kubeconfig \S+)$", demo.text, re.MULTILINE)
    async with host.stdio(command, environment(demo.folder), demo.folder / "server.log") as model:
        # "Delete the ConfigMap checkout-critical in prod-web."
        said = await model.call(server.delete("ConfigMap", "prod-web", "checkout-critical"))
        sentence = re.search(r"It reads `(.*?)…`", SECTION)[1]
        assert sentence in said.text
        assert said.failed
        assert "checkout-critical" in (await model.call(server.get("ConfigMap", "prod-web", "checkout-critical"))).text
        printed = re.findall(r"^  # \d\. (\w+).*\n(?:  #.*\n)?  (\S*kubectl .*)$", demo.text, re.MULTILINE)
        assert [expected for expected, _ in printed] == ["passes", "passes", "refused", "waits", "passes"]
        for expected, line in printed:
            if expected != "waits":  # which is what the model asks for next
                done = await asyncio.to_thread(demo.run, line)
                assert (done.returncode == 0) is (expected == "passes"), (line, done.stderr)
        # "Delete the namespace shop.", and a person in another terminal.
        asked = asyncio.create_task(model.call(NAMESPACE_SHOP))
        name = await asyncio.to_thread(pending, demo, approving)
        decided = await asyncio.to_thread(demo.run, f"{approving[0]} approve {name} --yes {approving[1]}")
        assert decided.returncode == 0, decided.stderr
        said = await asked
    assert not said.failed, said.text


def pending(demo, approving) -> str:
    """The name of the one question, as the command shows it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        listed = demo.run(f"{approving[0]} list {approving[1]}").stdout
        if found := re.search(r"apr-\w+", listed):
            return found[0]
        time.sleep(0.1)
    raise AssertionError("nobody was asked")
