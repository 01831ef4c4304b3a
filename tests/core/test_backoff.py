"""The delay before a retry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jqd.core import model
from jqd.core.backoff import check_policy, retry_delay_ms
from jqd.core.model import RetryPolicy
from jqd.errors import InvalidArgument


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


# --- policies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "delays_ms"),
    [
        (RetryPolicy(base_ms=100, factor_percent=150, cap_ms=300), [100, 150, 225, 300, 300]),
        (RetryPolicy(base_ms=7, factor_percent=100), [7] * 5),
        (RetryPolicy(factor_percent=10_000), [1_000, 100_000, 3_600_000, 3_600_000, 3_600_000]),
        (RetryPolicy(kind="linear", base_ms=400, cap_ms=1_500), [400, 800, 1_200, 1_500, 1_500]),
        (RetryPolicy(kind="linear"), [1_000, 2_000, 3_000, 4_000, 5_000]),
        (RetryPolicy(kind="fixed", base_ms=model.DELAY_MS_MAX), [model.DELAY_MS_MAX] * 5),
        (RetryPolicy(kind="fixed"), [1_000] * 5),
        (RetryPolicy(kind="list", delays_ms=(5, 0, 9)), [5, 0, 9, 9, 9]),
    ],
)
def test_each_kind_has_its_delays(policy, delays_ms):
    check_policy("retry", policy)
    exact = replace(policy, jitter_percent=0)
    assert [retry_delay_ms(n, 3, n, exact) for n in range(1, 6)] == delays_ms
    for n, delay_ms in enumerate(delays_ms, 1):
        for percent in (7, 100):
            got_ms = retry_delay_ms(n, 3, n, replace(policy, jitter_percent=percent))
            assert delay_ms * (100 - percent) <= got_ms * 100 <= delay_ms * (100 + percent)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@given(n=st.integers(1, 1_001), base_ms=st.integers(1, 1 << 34), factor=st.integers(100, 10_000))
def test_no_delay_passes_its_cap_however_many_failures(kind, n, base_ms, factor):
    policy = RetryPolicy(
        kind=kind,
        base_ms=base_ms,
        factor_percent=factor if kind == "exponential" else None,
        cap_ms=model.DELAY_MS_MAX,
        jitter_percent=0,
    )
    assert min(base_ms, model.DELAY_MS_MAX) <= retry_delay_ms(n, 1, n, policy) <= model.DELAY_MS_MAX


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            RetryPolicy(delays_ms=(1,)),
            r"retry.delays_ms = \[1\]: a policy of kind 'exponential' takes base_ms",
        ),
        (RetryPolicy(kind="linear", factor_percent=200), r"retry.factor_percent = 200: .*'linear'"),
        (RetryPolicy(kind="fixed", cap_ms=5), r"retry.cap_ms = 5: .*'fixed' takes base_ms jitter_percent"),
        (RetryPolicy(kind="list", base_ms=5, delays_ms=(1,)), r"retry.base_ms = 5: .*'list'"),
        (RetryPolicy(kind="list"), r"retry.delays_ms is missing"),
        (RetryPolicy(base_ms=6, cap_ms=5), r"retry.base_ms = 6: it is above cap_ms, which is 5"),
        (RetryPolicy(kind="linear", base_ms=3_600_001), r"retry.base_ms = 3600001: .* which is 3600000"),
        (RetryPolicy(cap_ms=999), r"retry.base_ms = 1000: it is above cap_ms, which is 999"),
    ],
)
def test_policy_that_makes_no_sense_is_refused(policy, message):
    with pytest.raises(InvalidArgument, match=message):
        check_policy("retry", policy)
