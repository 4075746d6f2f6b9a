import os
import subprocess
import sys
from pathlib import Path

import pytest

from addons.net import undumpable

ROOT = Path(__file__).resolve().parents[3]
SAYS = """
import ctypes, resource
from addons.net import undumpable
undumpable.{call}()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""


def run(call: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SAYS.format(call=call)],
        capture_output=True, text=True, timeout=30, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.stdout.strip() or done.stderr


def test_no_core_file():
    assert run("forbid_core_files").startswith("(0, 0)")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has prctl")
def test_other_programs_cannot_read_it():
    assert run("forbid_reading") == "(0, 0) 0"


@pytest.mark.parametrize(
    ("platform", "fails", "said"),
    [
        pytest.param("darwin", False, "only Linux can forbid it", id="another system"),
        pytest.param("linux", True, "prctl, errno", id="not allowed"),
    ],
)
def test_what_cannot_be_forbidden_is_said(monkeypatch, caplog, platform, fails, said):
    class Library:
        def __init__(self, *_args, **_more): ...

        def prctl(self, *_args):
            return -1 if fails else 0

    caplog.set_level("INFO")
    monkeypatch.setattr(undumpable, "forbid_core_files", lambda: None)
    monkeypatch.setattr(undumpable.sys, "platform", platform)
    monkeypatch.setattr(undumpable.ctypes, "CDLL", Library)
    undumpable.forbid_reading()
    assert said in caplog.text
