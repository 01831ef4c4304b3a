"""How much, and for how long, leases are not charged for time in which workers could not be heard."""

from jqd.core.model import RESTART_GRACE_MS
from jqd.server.standstill import SLACK_MS, STANDSTILL_MS, Standstill


def test_standstill_is_forgiven_for_as_long_as_it_was_and_the_slack():
    standstill = Standstill()
    assert standstill.see(10_000, 4_000) == 6_000
    assert standstill.lag_ms(10_000) == 6_000 + SLACK_MS
    assert standstill.lag_ms(10_000 + 6_000 + SLACK_MS - 1) == 6_000 + SLACK_MS
    assert standstill.lag_ms(10_000 + 6_000 + SLACK_MS) == 0


def test_busy_machine_is_no_standstill():
    standstill = Standstill()
    assert standstill.see(10_000, 10_000 - STANDSTILL_MS) == 0
    assert standstill.lag_ms(10_000) == 0


def test_forgiveness_ends_as_after_a_restart_however_long_it_stood():
    standstill = Standstill()
    standstill.see(10_000_000, 0)
    assert standstill.lag_ms(10_000_000 + RESTART_GRACE_MS - 1) == 10_000_000 + SLACK_MS
    assert standstill.lag_ms(10_000_000 + RESTART_GRACE_MS) == 0


def test_small_standstills_do_not_prolong_a_large_one():
    standstill = Standstill()
    standstill.see(100_000, 80_000)  # forgiven until 122,000
    small_ms = STANDSTILL_MS + 100
    for now_ms in range(100_000 + small_ms, 122_000 + small_ms, small_ms):  # one after the other
        standstill.see(now_ms, now_ms - small_ms)
        assert standstill.lag_ms(now_ms) == (20_000 + SLACK_MS if now_ms < 122_000 else small_ms + SLACK_MS)


def test_longer_one_takes_the_place_of_what_it_covers():
    standstill = Standstill()
    for now_ms in range(10_000, 20_000, 1_000):  # the same sync, looked at again and again
        standstill.see(now_ms, 9_000)
    assert standstill.lag_ms(19_000) == 10_000 + SLACK_MS
    assert standstill.lag_ms(19_000 + 10_000 + SLACK_MS) == 0
