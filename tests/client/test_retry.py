from hypothesis import given
from hypothesis import strategies as st

from jqd.client.retry import Backoff


def test_waits_double_up_to_the_cap():
    backoff = Backoff(first_ms=50, cap_ms=2_000, jitter=0.5, give_up_ms=60_000)
    assert [backoff.wait_ms(n, 0, 0.0) for n in range(1, 9)] == [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]


def test_chance_takes_at_most_the_jitter_away():
    assert Backoff(first_ms=100, jitter=0.5).wait_ms(1, 0, 0.5) == 75
    assert Backoff(first_ms=100, jitter=0.0).wait_ms(1, 0, 0.99) == 100


def test_it_gives_up_when_the_time_has_passed():
    backoff = Backoff(give_up_ms=1_000)
    assert backoff.wait_ms(30, 999, 0.0) == 1
    assert backoff.wait_ms(1, 1_000, 0.0) is None


@given(st.integers(1, 10_000), st.integers(0, 100_000), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_negative_nor_longer_than_the_cap(failures, passed_ms, chance):
    wait_ms = Backoff().wait_ms(failures, passed_ms, chance)
    assert (wait_ms is None) == (passed_ms >= 60_000)
    assert wait_ms is None or 0 <= wait_ms <= 2_000
