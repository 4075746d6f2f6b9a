import pytest

from addons.core.virtualwatch import ADDED, DELETED, MODIFIED, Shown


@pytest.mark.parametrize(
    ("steps", "events"),
    [
        pytest.param([{}], [ADDED], id="it is new"),
        pytest.param([{}, {}], [ADDED, MODIFIED], id="it changes"),
        pytest.param([{"matches": False}], [""], id="it is none of his"),
        pytest.param([{}, {"matches": False}], [ADDED, DELETED], id="it leaves the selector"),
        pytest.param([{}, {"matches": False}, {"matches": False}], [ADDED, DELETED, ""], id="and stays out"),
        pytest.param([{}, {"matches": False}, {}], [ADDED, DELETED, ADDED], id="and comes back"),
        pytest.param([{}, {"deleted": True}], [ADDED, DELETED], id="it goes"),
        pytest.param([{"deleted": True}], [""], id="he never had it"),
        pytest.param([{"replayed": True, "matches": False}], [DELETED], id="it left while he was on his way"),
        pytest.param([{"replayed": True, "deleted": True}], [DELETED], id="it went while he was on his way"),
        pytest.param([{"replayed": True}], [ADDED], id="it may be new to him"),
        pytest.param(
            [{"replayed": True, "matches": False}, {"replayed": True, "matches": False}], [DELETED, ""], id="said once"
        ),
    ],
)
def test_events(steps, events):
    shown = Shown()
    assert [shown.event("a", **{"matches": True, **step}) for step in steps] == events


def test_what_he_had_before():
    shown = Shown(["a"])
    assert shown.event("a", matches=True) == MODIFIED
    assert shown.event("b", matches=True) == ADDED
    assert shown.event("a", matches=False) == DELETED
