from pathlib import Path

import pytest

from addons.cli import arguments


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        pytest.param(["a"], (["a"], []), id="nothing for mitmproxy"),
        pytest.param(["a", "--", "b", "--", "c"], (["a"], ["b", "--", "c"]), id="split at the first"),
        pytest.param(["--"], ([], []), id="empty"),
    ],
)
def test_split(argv, expected):
    assert arguments.split(argv) == expected


def test_state_folder(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    assert arguments.state_default() == Path("/elsewhere/tollgate")


def test_recordings_folder(monkeypatch):
    monkeypatch.delenv("TOLLGATE_RECORDINGS", raising=False)
    assert arguments.recordings_default() == Path(__file__).parents[3] / "recordings"
    monkeypatch.setenv("TOLLGATE_RECORDINGS", "/elsewhere")
    assert arguments.recordings_default() == Path("/elsewhere")
