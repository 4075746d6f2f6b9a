import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import limits


def test_bucket_gives_a_burst_then_the_rate():
    buckets = limits.Buckets(rate=2, burst=3)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert [buckets.take("a", 0.5) for _ in range(2)] == [True, False]


def test_keys_do_not_share():
    buckets = limits.Buckets(rate=1, burst=1)
    assert buckets.take("a", 0.0)
    assert buckets.take("b", 0.0)
    assert not buckets.take("a", 0.0)


def test_no_rate_is_no_limit():
    assert all(limits.Buckets(0, 0).take("a", 0.0) for _ in range(100))


def test_a_clock_that_goes_back_gives_nothing():
    buckets = limits.Buckets(rate=1, burst=1)
    assert buckets.take("a", 100.0)
    assert not buckets.take("a", 0.0)


@given(st.lists(st.floats(0, 100), max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_never_more_than_burst_and_rate(times, rate, burst):
    buckets, times = limits.Buckets(rate, burst), sorted(times)
    passed = sum(buckets.take("a", now) for now in times)
    span = times[-1] - times[0] if times else 0
    assert passed <= burst + rate * span + 1e-6


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(limits, "MAX_KEYS", 10)
    buckets = limits.Buckets(rate=1, burst=5)
    for i in range(100):
        buckets.take(str(i), 0.0)
    assert len(buckets._levels) <= 10


def test_shares():
    shares = limits.Shares(2)
    assert [shares.borrow("a") for _ in range(3)] == [True, True, False]
    shares.give_back("a")
    assert shares.borrow("a")
    assert shares.of("a") == 2
    shares.give_back("a")
    shares.give_back("a")
    shares.give_back("a")  # one too many must not make room for a third
    assert [shares.borrow("a") for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("most", [0, -1])
def test_no_most_is_no_limit(most):
    shares = limits.Shares(most)
    assert all(shares.borrow("a") for _ in range(50))


def test_digest_says_how_many():
    digest = limits.Digest(every=1.0)
    assert [digest.note("a", t) for t in (0.0, 0.1, 0.2, 1.1)] == [1, 0, 0, 3]
    assert digest.note("b", 0.2) == 1
    assert digest.note("a", -86400.0) == 1  # the clock was put back


def test_an_allowance_is_spent_comes_back_with_time_and_can_be_earned():
    allowance = limits.Allowance(rate=10, most=2, now=0)
    assert [allowance.spend(0) for _ in range(3)] == [True, True, False]
    assert allowance.spend(0.1)
    assert not allowance.spend(0.1)
    allowance.earn(1)
    assert allowance.spend(0.1)
    allowance.earn(100)
    assert [allowance.spend(0.1) for _ in range(3)] == [True, True, False]  # never more than `most`
    allowance.earn(1)
    assert not allowance.spend(0.1, cost=2)
    assert allowance.spend(0.1)
    assert not allowance.spend(-5)  # a clock that goes back gives nothing
