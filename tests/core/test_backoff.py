"""The delay before a retry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jqd.core.backoff import retry_delay_ms


@given(st.integers(1, 1_001), st.integers(1, (1 << 60) - 1), st.integers(1, 1 << 32))
def test_delay_doubles_to_an_hour_give_or_take_a_fifth(failures, job_id, attempt):
    exact_ms = min(1_000 * 2 ** (failures - 1), 3_600_000)
    assert exact_ms * 0.8 <= retry_delay_ms(failures, job_id, attempt) <= exact_ms * 1.2


@given(st.integers(1, 20), st.integers(1, 1 << 48), st.integers(1, 100))
def test_delay_is_the_same_each_time(failures, job_id, attempt):
    assert retry_delay_ms(failures, job_id, attempt) == retry_delay_ms(failures, job_id, attempt)


# What is in logs was computed like this; a change would not hurt them, but should be meant.
@pytest.mark.parametrize(
    ("failures", "job_id", "attempt", "delay_ms"),
    [
        (1, 1, 1, 1115),
        (2, 1, 2, 2080),
        (5, 7, 5, 15187),
        (13, 9, 13, 3115222),
        (1000, 1152921504606846975, 999, 4062691),
    ],
)
def test_delay_does_not_change_by_accident(failures, job_id, attempt, delay_ms):
    assert retry_delay_ms(failures, job_id, attempt) == delay_ms


def test_jitter_spreads_jobs_that_failed_together():
    delays = {retry_delay_ms(1, job_id, 1) for job_id in range(1, 1_001)}
    assert len(delays) > 350
    assert min(delays) < 810
    assert max(delays) > 1_190


def test_jitter_differs_from_attempt_to_attempt():
    assert len({retry_delay_ms(20, 1, attempt) for attempt in range(1, 17)}) > 12
