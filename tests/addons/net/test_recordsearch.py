import json

import pytest

from addons.core import auditevents, sessions
from addons.net import recordsearch

NOON = 1795521600.0  # 2026-11-24T12:00:00Z
USER = "tollgate:system:serviceaccount:agents:ci-agent"


def a_session(root, started, uid, *ids):
    folder = root / sessions.session_path(USER, started, uid)
    folder.mkdir(parents=True)
    lines = [json.dumps({"auditID": one}, separators=(",", ":")) for one in ids]
    (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("began", "asked"),
    [
        pytest.param(NOON, NOON + 60, id="the same day"),
        pytest.param(NOON, NOON + 13 * 3600, id="over midnight"),
    ],
)
def test_the_session_that_has_it(tmp_path, began, asked):
    wanted = a_session(tmp_path, began, "aaaa", "a-1", "a-2")
    a_session(tmp_path, began + 5, "bbbb", "a-3")
    assert recordsearch.session_of(tmp_path, USER, asked, "a-2") == wanted
    assert recordsearch.session_of(tmp_path, USER, asked, "a-4") is None
    assert recordsearch.session_of(tmp_path, "somebody-else", asked, "a-2") is None


def test_what_is_not_there_or_cannot_be_read(tmp_path):
    folder = tmp_path / sessions.session_path(USER, NOON, "aaaa")
    assert recordsearch.session_of(tmp_path, USER, NOON, "a-1") is None
    folder.mkdir(parents=True)
    assert recordsearch.session_of(tmp_path, USER, NOON, "a-1") is None
    (folder / "events.jsonl").touch()
    (folder.parent / "a-file").touch()
    assert recordsearch.session_of(tmp_path, USER, NOON, "a-1") is None


def test_the_day_is_that_of_the_recorder():
    assert auditevents.timestamp(NOON).startswith("2026-11-24")
