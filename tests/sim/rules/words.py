"""What requests say, and whether an answer says that they have changed something.

Knows:         protocol.md "Commands": what the arguments and the answers of several verbs have in common.
Must not know: anything of jqd; what is right (the other files here).
"""

from collections.abc import Iterable, Iterator
from typing import Any

from tests.sim.rules.model import NO_PROGRESS, Args, Job, Progress, Request


def groups_of(request: Request) -> Iterable[Args]:
    """Return what a submit says of its jobs: one map for all that are alike."""
    if request.verb == "submit":
        return (request.args,)
    return request.args["groups"] if request.verb == "submit_many" else ()


def payloads_of(fields: Args) -> list[bytes]:
    payloads: list[bytes] | None = fields.get("payloads")
    return [fields.get("payload", b"")] if payloads is None else payloads


def dedupe_of(fields: Args) -> tuple[str, str]:
    return fields.get("queue", "default"), fields["dedupe_key"]


def edit_of(fields: Args, *, update: bool = False) -> Args:
    """Return what an update, or a further submit with a dedupe key, makes of a job; what is not said stays."""
    payload = fields.get("payload") if update else payloads_of(fields)[0]
    usual = None if update and payload is None else "raw"
    priority = fields.get("priority") if update else fields.get("priority", 0)
    return {
        "payload": payload,
        "encoding": fields.get("encoding") or usual,
        "priority": priority,
        "metadata": fields.get("metadata"),
    }


def progress_said(args: Args) -> Progress | None:
    """Return what an extend says of progress; None: it leaves it."""
    said = args.get("progress_percent"), args.get("progress_text", "")
    return None if said == NO_PROGRESS else said


def acts_on_holder(request: Request, job: Job) -> Iterator[str]:
    """Yield what a submit can do to a job that has one of its dedupe keys."""
    for fields in groups_of(request):
        if fields.get("dedupe_key") == job.pool.shown["dedupe_key"]:
            if fields.get("dedupe") == "debounce":
                yield "update"
            elif fields.get("dedupe") == "replace":
                yield "edit"


def ids_in(ranges: Iterable[Any]) -> Iterator[int]:
    for first, count in ranges:
        yield from range(first, first + count)


def named_by(args: Args) -> Iterator[tuple[int, int]]:
    """Yield (job id, token) for each job that ack, fail, release or extend names."""
    for item in args["items"]:
        for job_id in ids_in(item[1]):
            yield job_id, item[0]


def queue_swept(args: Args) -> str | None:
    """Return the queue that a filter means; None: all of them."""
    queue: str | None = (args.get("filter") or {}).get("queue")
    return queue


def has_changed(request: Request, body: Any) -> bool:
    """Tell whether a request with this answer has changed something."""
    verb = request.verb
    if verb == "submit":
        if body.get("existing") and request.args.get("idempotency_key") is None:
            return request.args.get("dedupe") in ("replace", "debounce")
        return "job_id" in body and not body.get("existing")
    if verb == "submit_many":
        return any(not existing for _, _, existing in body.get("jobs", ()))
    if verb == "update":
        return "state" in body
    if verb == "lease":
        return bool(body.get("jobs"))
    if verb in ("ack", "fail", "release", "extend"):
        return any(code == "ok" for _, _, code in body.get("results", ()))
    return (
        verb in ("cancel", "requeue", "purge")
        and body.get("count", 0) > body.get("marked", 0)  # a mark may have been there before
        and not request.args.get("dry_run")
    )


def lo_of(request: Request, lsn: int) -> int:
    """Return the LSN from which on a request can have been carried out that was answered at one."""
    return lsn if request.sends == 1 else request.floor
