import json
import subprocess
import sys

import pytest

from addons.net import apprising


def run(**asked):
    """As the gateway runs it: a program of its own, which knows nothing of ours."""
    done = subprocess.run(
        [sys.executable, "-I", apprising.__file__], input=json.dumps(asked), capture_output=True, text=True, timeout=60
    )
    assert "canary" not in done.stdout + done.stderr
    return done.returncode, done.stdout


def test_check_names_those_that_are_none():
    urls = ["json://canary:1", "nothing://canary", "canary", "slack://", "mailto://user:canary@example.com"]
    assert run(check=urls) == (apprising.SENT, "[1, 2, 3]")


@pytest.mark.parametrize("url", ["nothing://canary", "json://127.0.0.1:1/canary"], ids=["unknown", "nobody listens"])
def test_not_sent(url):
    assert run(url=url, title="t", text="x", urgent=True) == (apprising.NOT_SENT, "")
