"""The pictures of the docs can be taken: by the command, in a process of its own since its cluster is its own."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from tests.e2e import gateway
from tests.screenshots import __main__ as command
from tests.screenshots import browser

pytestmark = pytest.mark.e2e


def test_the_pictures(tmp_path, controlplane):  # the fixture, so that the programs are built
    more = [] if browser.program() else ["--no-browser"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.screenshots", "--out", str(tmp_path), *more],
        cwd=gateway.ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = {}
    for name in command.TERMINALS:
        picture = (tmp_path / name).read_text()
        assert str(gateway.ROOT) not in picture
        words = "".join(ET.fromstring(picture).itertext())  # noqa: S314 (made here)
        said[name] = words.replace("\xa0", " ")
    assert "rule agents/critical-configmaps denies this" in said["blocked.svg"]
    assert "namespace/web created" in said["approval-kubectl.svg"]
    assert "not while the shop is open" in said["approval-watch.svg"]
    assert "canary-" not in "".join(said.values())
    if not more:
        assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in command.PAGES)
