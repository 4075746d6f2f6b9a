import pytest
from mitmproxy import version

from addons.mitm import dispatch, inlining, originals, trimming


def known(a: int) -> int:
    return a + 1


def other(a: int) -> int:
    return a + 2


RIGHT = originals.fingerprint(known)


@pytest.mark.parametrize(
    ("expected", "running", "said"),
    [
        pytest.param({known: RIGHT}, "12.2.3", "", id="the same"),
        pytest.param({known: RIGHT}, "12.2.4", "mitmproxy is 12.2.4, not 12.2.3", id="another version"),
        pytest.param({known: RIGHT, other: RIGHT}, "12.2.3", "other of mitmproxy is not", id="another text"),
        pytest.param({len: ""}, "12.2.3", "", id="without a text"),
        pytest.param({len: RIGHT}, "12.2.3", "len of mitmproxy is not", id="a text is gone"),
    ],
)
def test_differ(expected, running, said):
    found = originals.differ(expected, running)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_every_part_was_written_for_the_mitmproxy_that_is_locked():
    assert version.VERSION == originals.VERSION
    for part in (dispatch, inlining, trimming):
        assert originals.differ(part.EXPECTED) == ""
        assert all(part.EXPECTED.values())
