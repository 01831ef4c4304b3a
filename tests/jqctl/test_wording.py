"""Refusals in the words of the command line."""

import click
import pytest

from jqctl.verbs import cli
from jqctl.wording import reworded

SUBMIT, EXTEND, JOBS = (cli.commands[verb] for verb in ("submit", "extend", "jobs"))


@pytest.mark.parametrize(
    ("command", "theirs", "ours"),
    [
        (SUBMIT, "submit: lease_ms = 999: expected `int` >= 1000", "--lease 999ms: at least 1000"),
        (SUBMIT, "submit: lease = 999ms: at least 1s", "--lease 999ms: at least 1s"),
        (
            SUBMIT,
            "expires_ms = 1000: it would expire before it is ready (delay_ms = 90000)",
            "--expires 1s: it would expire before it is ready (--delay 90s)",
        ),
        (
            SUBMIT,
            "dedupe = debounce: it moves the time of the job: give delay_ms or run_at_ms",
            "--dedupe debounce: it moves the time of the job: give --delay or --run-at",
        ),
        (
            SUBMIT,
            "retry.base_ms = 90000: it is above cap_ms, which is 1000",
            "--retry base=90s: it is above cap, which is 1s",
        ),
        (
            SUBMIT,
            "retry.kind = fixed: with delivery at_most_once nothing is retried",
            "--retry kind=fixed: with delivery at_most_once nothing is retried",
        ),
        (SUBMIT, f"run_at_ms = {1 << 62}: no", f"--run-at {1 << 62} ms: no"),
        (SUBMIT, "metadata = 5000 bytes: the limit is 4096", "--meta 5000 bytes: the limit is 4096"),
        (EXTEND, "progress_text = 300 bytes: the limit is 256", "--text 300 bytes: the limit is 256"),
        (EXTEND, "extend: progress_percent = 101: expected `int` <= 100", "--progress 101: at most 100"),
        (JOBS, "filter.queue = 'a b': a name must match x", "--queue 'a b': a name must match x"),
        (
            JOBS,
            "filter.where, character 9: state = 'redy': it is one of done dead",
            "--filter, character 9: state = 'redy': it is one of done dead",
        ),
        (SUBMIT, "dedupe = reject: there is no dedupe_key", "--dedupe reject: there is no --dedupe-key"),
        (
            SUBMIT,
            "result_ttl_ms = 90000000: the limit is 3600000, the retention_ms of queue q: set_queue raises it",
            "--result-ttl 25h: the limit is 1h, the retention of queue q: jqctl queue set raises it",
        ),
        # No options of the command, and what was typed where a name may stand.
        (EXTEND, "delay_ms = 5: no", "delay_ms = 5: no"),
        (
            SUBMIT,
            "queue = 'delay_ms = 5': a name must match x",
            "queue = 'delay_ms = 5': a name must match x",
        ),
        (SUBMIT, "task = 'it\\'s lease_ms = 5': no", "--task 'it\\'s lease_ms = 5': no"),
        (SUBMIT, 'task = "lease_ms = 5": no', '--task "lease_ms = 5": no'),
        (  # cut, it has no second quote
            SUBMIT,
            "task = 'lease_ms = 5, delay_ms = 6... (99 characters): no",
            "--task 'lease_ms = 5, delay_ms = 6... (99 characters): no",
        ),
        (
            SUBMIT,
            "task = 'lease_ms = 5\\... (99 characters): not what delay_ms = 6 'says'",
            "--task 'lease_ms = 5\\... (99 characters): not what --delay 6ms 'says'",
        ),
        (SUBMIT, "results: a request has one encoding", "results: a request has one encoding"),
        (SUBMIT, "the group has a lease and a delay", "the group has a lease and a delay"),
    ],
)
def test_a_field_is_called_what_was_typed(command: click.Command, theirs, ours):
    assert reworded(theirs, command) == ours


def test_a_message_that_no_jqd_has_written_stays_as_it_is():
    message = "lease_ms = 1: " + "x" * 2_000
    assert reworded(message, SUBMIT) == message
