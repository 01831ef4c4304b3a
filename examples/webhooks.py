"""A worker with retries: tell other people's servers what happened here.

    jqd worker webhooks:app -q webhooks -c 20

What a receiver answers decides how the job goes on: see `deliver`.
"""

import email.message
import json
import urllib.error
import urllib.request

import jqd

# Without a url: $JQD_URL, else jqd://127.0.0.1:7717. Nothing is connected before the first submit.
app = jqd.App()

TOO_MANY, UNAVAILABLE = 429, 503


# The lease (30 s) is extended for as long as the function runs, so it says nothing about how long that may be: the
# timeout does. The retry policy holds for errors that the function does not speak about itself.
@app.task(queue="webhooks", max_retries=8, retry="exponential,base=2s,cap=1h", timeout="15s")
def deliver(url: str, event: dict[str, str]) -> int:
    """POST an event as JSON; return the status that came back."""
    job = jqd.current_job()
    request = urllib.request.Request(
        url,
        data=json.dumps(event).encode(),
        # A job runs at least once: after a crash perhaps twice. Its id stays the same, so the receiver can tell.
        headers={"Content-Type": "application/json", "Idempotency-Key": str(job.job_id)},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        if error.code in (TOO_MANY, UNAVAILABLE):
            # The receiver says when: an error is counted, but the policy is not asked.
            raise jqd.Retry(f"HTTP {error.code}", in_=_retry_after_s(error.headers)) from error
        if error.code < 500:
            # It will never take this one. The job is dead at once, and `jqctl dead list` shows why.
            raise jqd.Fail(f"HTTP {error.code}") from error
        raise
    # Whatever else is raised (refused connections, timeouts) is tried again after the backoff.


def _retry_after_s(headers: email.message.Message) -> int:
    said = headers.get("Retry-After", "")
    return int(said) if said.isdigit() else 30
