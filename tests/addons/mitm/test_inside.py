import pytest

from addons.mitm import inside

ONE, TWO = ("127.0.0.1", 40001), ("127.0.0.1", 40002)


@pytest.fixture(autouse=True)
def nothing_served():
    assert inside.address() is None
    yield
    for address in (ONE, ONE, TWO):
        inside.stop_serving(address)


def test_nothing_is_served_until_it_is_said_and_after_it_ended():
    inside.serve_at(ONE)
    assert inside.address() == ONE
    inside.stop_serving(ONE)
    assert inside.address() is None


def test_of_two_while_a_script_is_loaded_anew_the_later_counts():
    inside.serve_at(ONE)
    inside.serve_at(TWO)
    assert inside.address() == TWO
    inside.stop_serving(ONE)  # the old script ends after the new one has begun
    assert inside.address() == TWO


def test_to_stop_what_is_not_served_does_no_harm():
    inside.serve_at(TWO)
    for _ in range(2):
        inside.stop_serving(ONE)
    assert inside.address() == TWO
