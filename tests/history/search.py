"""The check that believes neither LSNs nor the log: only what clients asked and were told, and when.

    totals(book)        what became of each job that was submitted, after all of them were worked off
    jobs(book)          for each job: is there an order of the requests about it that explains all replies
    order(book)         was something handed out before what stood ahead of it
    check(history)      all three; a book is a history sorted by job

Jobs do not touch each other, so a history is linearizable if that of each job is, and these are short (Herlihy and
Wing's locality; Lowe's and Porcupine's search with the states seen so far remembered). What a job does by itself,
unseen, is tried where the time allows it: it becomes due, its lease runs out, a lease takes it of which nobody heard.

Knows:         the life of one job (protocol.md), and how long things take at least.
Must not know: LSNs, the dump, model.py, anything of the package under test.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain
from typing import Final, NamedTuple

from tests.history.operations import NEVER, Body, History, Operation, Violation, ids_in

NS: Final = 1_000_000  # per ms
# Requests about one job that overlap: beyond, its search could take for ever, and the job is counted as not judged.
WIDTH_MAX: Final = 12
# Who works everything off at the end, and lists it.
DRAIN: Final = "drain"
# The daemon reads its clocks once a turn. A request that is made while it stands still in the middle of one is judged by
# a time before it was made, and what it starts ends sooner by as much; more than a second is forgiven (protocol.md).
EARLY_NS: Final = 1_000 * NS
HOLDS: Final = ("extend", "ack", "fail", "release")
SWEEPS: Final = ("cancel", "requeue")


# --- what is known of each job ------------------------------------------------------------------


class State(NamedTuple):
    """One job. Times are the earliest that they can be."""

    phase: str = "none"
    attempt: int = 0
    errors: int = 0
    crashes: int = 0
    token: int = 0  # while leased; 0: of a lease that nobody was told of
    newest: int = 0  # token so far
    over_ns: int = 0  # leased: the lease cannot run out before; delayed: it cannot be ready before
    since_ns: int = 0  # leased: not before
    lost: int = 0  # leases that nobody was told of: how many of them cannot be this one any more


class Part(NamedTuple):
    """What one request has to do with one job. must: it was carried out, else it may have been."""

    invoked: int
    returned: int
    kind: str
    code: str  # the verdict; "" if it is not known
    args: Body
    seen: Body  # of the job, in a lease or a read
    must: bool
    operation: Operation


@dataclass(slots=True)
class Story:
    """All that is known of one job."""

    job_id: int
    submit: Operation | None = None
    options: Body = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)

    @property
    def queue(self) -> str:
        return str(self.options.get("queue", "default"))

    @property
    def key(self) -> tuple[int, int]:
        """Return its place in the queue: the least is handed out first."""
        return -self.options.get("priority", 0), self.job_id

    def limit(self, name: str) -> int:
        defaults = {"max_crashes": 5, "max_retries": 0 if self.at_most_once else 3}
        return int(self.options.get(name, defaults[name]))

    @property
    def at_most_once(self) -> bool:
        return bool(self.options.get("delivery") == "at_most_once")


class Book:
    """What a history says, sorted by job."""

    def __init__(self, history: History) -> None:
        self.operations = [one for one in history.operations if one.ids]  # else it was never sent
        self.starts = history.starts
        self.asked: dict[str, tuple[Operation, Body, int]] = {}  # marker -> submit, options, number of jobs
        self.stories: dict[int, Story] = {}
        self.markers: dict[str, set[int]] = {}  # marker -> jobs that carry it
        for one in self.operations:
            for options in _options_of(one):
                count = len(options.get("payloads", [b""]))
                self.asked[options["metadata"]["marker"]] = one, options, count
        for one in self.operations:
            self._read(one)
        # Leases of which a part, or all, came to nobody: unanswered, or asked again.
        self.lost: dict[str, list[Operation]] = {}
        self.sweeps: dict[tuple[str, str], list[Operation]] = {}  # (verb, queue) -> those by filter
        for one in sorted(self.operations, key=lambda one: one.invoked):
            if one.verb == "lease" and (one.is_unknown or one.sends > 1 or len(one.ids) > 1):
                for queue in one.args["queues"]:
                    self.lost.setdefault(queue, []).append(one)
            elif one.verb in SWEEPS and one.args.get("filter") and (one.is_unknown or one.is_answered):
                self.sweeps.setdefault((one.verb, one.args["filter"]["queue"]), []).append(one)

    def _read(self, one: Operation) -> None:
        body = one.body if one.is_answered else {}
        match one.verb:
            case "submit" | "submit_many" if body:
                ranges = body["jobs"] if "jobs" in body else [(body["job_id"], 1, False)]
                for options, (first, count, _) in zip(_options_of(one), ranges, strict=True):
                    for job_id in range(first, first + count):
                        self._knows(job_id, options["metadata"]["marker"], one)
            case "lease" | "list":
                for job in body.get("jobs", ()):
                    self._knows(job["job_id"], job["metadata"]["marker"], one)
                    self._add(job["job_id"], one, one.verb, "ok", {"token": body.get("token", 0)}, job)
            case "get" if body:
                self._knows(body["job_id"], body["metadata"]["marker"], one)
                self._add(body["job_id"], one, "list", "ok", {}, body)
            case "get" if one.status == "job_not_found":
                self._add(one.args["job_id"], one, "list", one.status, {}, {})
            case verb if verb in HOLDS and (body or one.is_unknown):
                codes = _verdicts(body)
                for item in one.args["items"]:
                    for job_id in ids_in(item[1]):
                        self._add(job_id, one, verb, codes.get(job_id, ""), {"token": item[0]}, {})
            case verb if verb in SWEEPS and one.args.get("ids") and (body or one.is_unknown):
                codes = _verdicts(body)
                for job_id in ids_in(one.args["ids"]):
                    self._add(job_id, one, verb, codes.get(job_id, ""), {}, {})

    def _knows(self, job_id: int, marker: str, one: Operation) -> None:
        """Note that somebody was shown a job with this marker."""
        if marker not in self.asked:
            raise Violation("unexpected", f"nobody submitted job {job_id}, {marker}: {one}")
        submit, options, count = self.asked[marker]
        jobs = self.markers.setdefault(marker, set())
        jobs.add(job_id)
        if len(jobs) > count:
            raise Violation("duplicated", f"{marker} is jobs {sorted(jobs)}: {one}")
        story = self.stories.setdefault(job_id, Story(job_id))
        if story.submit not in (None, submit):
            raise Violation("duplicated", f"job {job_id} is of two submits: {story.submit}\n  {submit}")
        story.submit, story.options = submit, options

    def _add(self, job_id: int, one: Operation, kind: str, code: str, args: Body, seen: Body) -> None:
        story = self.stories.setdefault(job_id, Story(job_id))
        must = bool(one.status) and not one.is_unknown
        story.parts.append(Part(one.invoked, one.returned, kind, code, args, seen, must, one))


def _options_of(one: Operation) -> list[Body]:
    groups: dict[str, list[Body]] = {"submit": [one.args], "submit_many": one.args.get("groups", [])}
    return groups.get(one.verb, [])


def _verdicts(body: Body) -> dict[int, str]:
    return {
        job_id: code
        for first, count, code in body.get("results", ())
        for job_id in range(first, first + count)
    }


# --- sums ---------------------------------------------------------------------------------------


def totals(book: Book) -> Counter[str]:
    """Compare what was submitted with what is there after everything was worked off.

    Raises: Violation: lost, unexpected, duplicated, half a request, not worked off.
    """
    final = {job["job_id"]: job for job in _last_listing(book.operations)}
    figures = Counter(jobs=len(final))
    for marker, (one, _, count) in book.asked.items():
        there = [job_id for job_id in book.markers.get(marker, ()) if job_id in final]
        if one.is_answered and len(there) < count:
            raise Violation("lost", f"of {count} jobs {there} are there: {one}")
        if there and len(there) < count:
            raise Violation("half a request", f"of {count} jobs {there} are there: {one}")
        figures["recovered"] += len(there) * one.is_unknown
        if there and not one.is_answered and not one.is_unknown:
            raise Violation("unexpected", f"jobs {there} are there of what was refused: {one}")
    for job_id, job in final.items():
        figures[job["state"]] += 1
        if job["state"] not in ("done", "dead", "cancelled"):
            raise Violation("not worked off", f"job {job_id} is {job['state']} at the end")
    for job_id in book.stories.keys() - final.keys():
        if book.stories[job_id].submit is not None:
            raise Violation("lost", f"job {job_id} was shown: {book.stories[job_id].parts[-1].operation}")
    return figures


def _last_listing(operations: list[Operation]) -> Iterator[Body]:
    """Yield the jobs of the last whole listing of whoever worked everything off."""
    pages = [one for one in operations if one.actor == DRAIN and one.verb == "list" and one.is_answered]
    if not pages or pages[-1].body["cursor"] is not None:
        raise Violation("not worked off", "there is no whole listing at the end")
    first = max(index for index, page in enumerate(pages) if not page.args.get("cursor"))
    return chain.from_iterable(page.body["jobs"] for page in pages[first:])


# --- one job: Wing and Gong ---------------------------------------------------------------------


def jobs(book: Book) -> Counter[str]:
    """Search for each job an order that explains every reply about it.

    Raises: Violation: there is none.
    """
    unknown_submit = any(one.is_unknown for one, _, _ in book.asked.values())
    figures: Counter[str] = Counter()
    for story in book.stories.values():
        if (
            story.submit is None
            and unknown_submit
            and any(part.code != "job_not_found" for part in story.parts)
        ):
            figures["jobs not judged"] += 1  # it may be one of those, and nobody was ever shown it
        elif _width(story.parts) > WIDTH_MAX:
            figures["jobs not judged"] += 1
        else:
            figures["jobs judged"] += 1
            figures["parts"] += len(story.parts)
            _Search(story, book).run()
    return figures


def _width(parts: Iterable[Part]) -> int:
    """Return how many of them were under way at a time."""
    width = most = 0
    for _, step in sorted(each for part in parts for each in ((part.invoked, 1), (part.returned, -1))):
        width += step
        most = max(most, width)
    return most


class _Search:
    def __init__(self, story: Story, book: Book) -> None:
        self._story = story
        self._parts = sorted(story.parts, key=lambda part: part.invoked)
        self._starts = book.starts
        # Whether somebody may have met a lease that nobody was told of, and that was taken back.
        self._was_met = any(
            part.code == "wrong_state" or part.seen.get("state") == "leased" for part in story.parts
        )
        self._lost = book.lost.get(story.queue, [])
        self._sweeps = {verb: book.sweeps.get((verb, story.queue), []) for verb in SWEEPS}
        if (submit := story.submit) is not None:
            came = Part(submit.invoked, submit.returned, "submit", "ok", {}, {}, True, submit)
            self._parts = sorted([came, *self._parts], key=lambda part: part.invoked)

    def run(self) -> None:
        """Raises: Violation."""
        parts = self._parts
        todo = sum(1 << index for index, part in enumerate(parts) if part.must)
        seen: set[tuple[int, State]] = set()
        stack = [(0, State())]
        deepest = 0
        while stack:
            done, state = stack.pop()
            if done & todo == todo:
                return
            if (done, state) in seen:
                continue
            seen.add((done, state))
            deepest = max(deepest, done, key=int.bit_count)
            open_parts = [(index, part) for index, part in enumerate(parts) if not done >> index & 1]
            latest = min((part.returned for _, part in open_parts if part.must), default=NEVER)
            earliest = max((part.invoked for index, part in enumerate(parts) if done >> index & 1), default=0)
            # A job that waits never has a lower attempt again: it cannot have more than somebody is still to see.
            most = min(
                (_attempt_before(part) for _, part in open_parts if part.must and part.seen), default=NEVER
            )
            reached = self._unseen(state, earliest, latest, most)
            for index, part in reversed(open_parts):
                if part.invoked <= latest:
                    for before in reached:
                        stack += ((done | 1 << index, after) for after in self._after(before, part, latest))
        left = [str(part.operation) for index, part in enumerate(parts) if not deepest >> index & 1]
        past = [str(part.operation) for index, part in enumerate(parts) if deepest >> index & 1]
        text = "\n  ".join([f"job {self._story.job_id}: explained at most:", *past, "and not:", *left])
        raise Violation("no order", text)

    # --- what nobody sees -----------------------------------------------------------------------

    def _unseen(self, state: State, now: int, latest: int, most: int) -> Iterable[State]:
        """Return all states in which the job can be from `now` to `latest` at most, without a request that is known."""
        best = {state._replace(lost=0): state}  # of states that are alike the one that leaves most possible
        stack = [state]
        while stack:
            for after in self._by_itself(stack.pop(), now, latest):
                if after.attempt > most + (after.phase == "leased" and self._was_met):
                    continue
                alike = after._replace(lost=0)
                if alike not in best or after.lost < best[alike].lost:
                    best[alike] = after
                    stack.append(after)
        return best.values()

    def _by_itself(self, state: State, now: int, latest: int) -> Iterator[State]:
        match state.phase:
            case "delayed" if latest >= state.over_ns:
                yield state._replace(phase="ready", over_ns=0)
            case "leased" if latest >= state.over_ns:
                yield from self._runs_out(state, latest)
        if state.phase == "leased" and not state.token:  # taken back, by the daemon or by the client
            yield state._replace(phase="ready", attempt=state.attempt - 1)
        if state.phase in ("ready", "delayed") and self._swept("cancel", now, latest):
            yield state._replace(phase="cancelled")
        if state.phase == "dead" and self._swept("requeue", now, latest):
            yield state._replace(phase="ready", errors=0, crashes=0)
        if state.phase == "ready":
            for number, lease in enumerate(self._lost[state.lost :], state.lost + 1):
                if lease.invoked <= latest and lease.returned >= now:
                    over_ns = lease.invoked + self._lease_ms(lease) * NS - EARLY_NS
                    yield state._replace(
                        phase="leased", attempt=state.attempt + 1, token=0, over_ns=over_ns,
                        since_ns=lease.invoked, lost=number,
                    )  # fmt: skip
                    break

    def _swept(self, verb: str, now: int, latest: int) -> bool:
        return any(one.invoked <= latest and one.returned >= now for one in self._sweeps[verb])

    def _runs_out(self, state: State, latest: int) -> Iterator[State]:
        story = self._story
        first_start = bisect_left(self._starts, state.since_ns)
        restarted = first_start < len(self._starts) and self._starts[first_start] <= latest
        if story.at_most_once:
            for crashes in {state.crashes + 1, state.crashes + (not restarted)}:
                yield state._replace(phase="dead", crashes=crashes, token=0)
            return
        if restarted:
            yield state._replace(phase="ready", token=0)
        crashes = state.crashes + 1
        if crashes > story.limit("max_crashes"):
            yield state._replace(phase="dead", crashes=crashes, token=0)
        elif crashes == 1:
            yield state._replace(phase="ready", crashes=crashes, token=0)
        else:
            over_ns = state.over_ns + _backoff_ns(crashes - 1)
            yield state._replace(phase="delayed", crashes=crashes, token=0, over_ns=over_ns)

    # --- what a request does ---------------------------------------------------------------------

    def _after(self, state: State, part: Part, latest: int) -> Iterator[State]:
        """Yield what the job may be after a request that was answered so, or not answered."""
        phase = state.phase
        match part.kind:
            case "submit" if phase == "none":
                delay_ms = self._story.options.get("delay_ms") or 0
                over_ns = part.invoked + delay_ms * NS - EARLY_NS
                yield state._replace(phase="delayed" if delay_ms else "ready", over_ns=over_ns)
            case "lease":
                if phase == "ready" and part.args["token"] > state.newest and _looks(state, part.seen, 1):
                    yield self._leased(state, part)
            case "list":
                if (part.code == "job_not_found" and phase == "none") or (
                    part.code == "ok" and phase == part.seen["state"] and _looks(state, part.seen, 0)
                ):
                    yield state
            case kind if kind in HOLDS:
                is_held = phase == "leased" and state.token == part.args["token"]
                if (part.code == "job_not_found" and phase == "none") or (
                    part.code == "lease_lost" and phase != "none" and (not is_held or latest >= state.over_ns)
                ):
                    yield state
                elif part.code in ("ok", "") and is_held:
                    yield self._ended(state, part)
            case kind if kind in SWEEPS:
                yield from self._swept_by_id(state, part)

    def _leased(self, state: State, part: Part) -> State:
        token = part.args["token"]
        return state._replace(
            phase="leased",
            attempt=state.attempt + 1,
            token=token,
            newest=token,
            over_ns=part.invoked + self._lease_ms(part.operation) * NS - EARLY_NS,
            since_ns=part.invoked,
        )

    def _lease_ms(self, lease: Operation) -> int:
        """Return the time that the job gets: without one in the command, jobs that ask for the same share a reply."""
        return int(lease.args.get("lease_ms") or self._story.options.get("lease_ms", 30_000))

    def _ended(self, state: State, part: Part) -> State:
        args = part.operation.args
        match part.kind:
            case "extend":
                lease_ms = args.get("lease_ms") or (state.over_ns - state.since_ns + EARLY_NS) // NS
                over_ns = part.invoked + lease_ms * NS - EARLY_NS
                return state._replace(over_ns=over_ns, since_ns=part.invoked)
            case "ack" if args.get("result_error") is not None:
                return state._replace(phase="dead", errors=state.errors + 1, token=0)
            case "ack":
                return state._replace(phase="done", token=0)
            case "fail":
                errors = state.errors + 1
                if args.get("dead") or errors > self._story.limit("max_retries"):
                    return state._replace(phase="dead", errors=errors, token=0)
                retry_in_ms = args.get("retry_in_ms")
                delay_ns = _backoff_ns(errors) if retry_in_ms is None else retry_in_ms * NS
                state = state._replace(errors=errors)
            case _:
                delay_ns = args.get("delay_ms", 0) * NS
                state = state._replace(attempt=state.attempt - 1)
        return state._replace(
            phase="delayed" if delay_ns else "ready",
            token=0,
            over_ns=part.invoked + delay_ns - EARLY_NS if delay_ns else 0,
        )

    def _swept_by_id(self, state: State, part: Part) -> Iterator[State]:
        accepted = ("delayed", "ready") if part.kind == "cancel" else ("dead",)
        if part.code in ("ok", "") and state.phase in accepted:
            if part.kind == "cancel":
                yield state._replace(phase="cancelled")
            else:
                yield state._replace(phase="ready", errors=0, crashes=0)
        elif part.code == "job_not_found":
            if state.phase == "none":
                yield state
        elif part.code == "wrong_state" and state.phase not in (*accepted, "none"):
            yield state


def _attempt_before(part: Part) -> int:
    """Return the attempt that a job had before a request that shows it."""
    return int(part.seen["attempt"]) - (part.kind == "lease")


def _backoff_ns(count: int) -> int:
    """Return the least that a job waits after its count-th failure."""
    return min(1_000 << min(count - 1, 30), 3_600_000) * NS * 8 // 10


def _looks(state: State, seen: Body, deliveries: int) -> bool:
    """Tell whether a job that is shown so may be in this state. deliveries: that the reply itself is."""
    return bool(
        seen["attempt"] == state.attempt + deliveries
        and seen.get("errors", 0) == state.errors
        and seen.get("crashes", 0) == state.crashes
    )


# --- order ---------------------------------------------------------------------------------------


class Ready(NamedTuple):
    """A job that was certainly ready all the time from `begin` to `end`."""

    begin: int
    end: int
    key: tuple[int, int]


def order(book: Book) -> Counter[str]:
    """Look for jobs that were passed over: certainly ready, and something behind them, or nothing, was handed out.

    Raises: Violation.
    """
    ready: dict[str, list[Ready]] = {}
    for story in book.stories.values():
        if story.submit is not None:
            ready.setdefault(story.queue, []).extend(_certainly_ready(story, book))
    figures: Counter[str] = Counter()
    wanted: dict[str, list[tuple[int, int, tuple[int, int], Operation]]] = {}
    for one in book.operations:
        if one.verb == "lease" and one.is_answered and one.sends == 1 and len(one.ids) == 1:
            figures["leases judged"] += 1
            for queue, last in _last_keys(one, book):
                wanted.setdefault(queue, []).append((one.invoked, one.returned, last, one))
    for queue, leases in wanted.items():
        _check_queue(sorted(ready.get(queue, [])), sorted(leases, key=lambda lease: lease[:3]))
    return figures


def _certainly_ready(story: Story, book: Book) -> Iterator[Ready]:
    submit = story.submit
    assert submit is not None
    begins = [submit] if not story.options.get("delay_ms") else []
    for part in story.parts:
        args = part.operation.args
        if part.code == "ok" and (
            (part.kind == "release" and not args.get("delay_ms"))
            or (part.kind == "requeue")
            or (part.kind == "fail" and args.get("retry_in_ms") == 0 and _may_fail(story, part))
        ):
            begins.append(part.operation)
    moves = [part.operation for part in story.parts if part.kind != "list" and part.code in ("ok", "")]
    moves += chain(book.lost.get(story.queue, ()), book.sweeps.get(("cancel", story.queue), ()))
    for one in begins:
        # What was under way meanwhile may have come behind it: then nothing is certain.
        ends = (move.invoked for move in moves if move.returned > one.invoked and move is not one)
        end = min(ends, default=NEVER)
        if one.returned < end:
            yield Ready(one.returned, end, story.key)


def _may_fail(story: Story, fail: Part) -> bool:
    """Tell whether an error costs a job certainly not its life."""
    errors = [
        part.seen.get("errors", 0)
        for part in story.parts
        if part.kind == "lease" and part.args["token"] == fail.args["token"]
    ]
    return bool(errors) and errors[0] < story.limit("max_retries")


def _last_keys(one: Operation, book: Book) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield for each queue of a lease the place up to which it certainly served it."""
    everything = (1 << 16, 0)
    served: dict[str, list[tuple[int, int]]] = {}
    for job in one.body["jobs"]:
        served.setdefault(job["queue"], []).append(book.stories[job["job_id"]].key)
    queues = list(dict.fromkeys(one.args["queues"]))
    if list(served) != [queue for queue in queues if queue in served]:
        raise Violation("order", f"its queues are not served one after the other: {one}")
    for keys in served.values():
        if keys != sorted(keys):
            raise Violation("order", f"its jobs do not stand in their order: {one}")
    # With jobs it may also end where one asks for another lease time.
    is_all = len(one.body["jobs"]) < one.args.get("count", 1) and (
        not served or one.args.get("lease_ms") is not None
    )
    last = max((index for index, queue in enumerate(queues) if queue in served), default=-1)
    for index, queue in enumerate(queues):
        if is_all or index < last:
            yield queue, everything
        elif queue in served:
            yield queue, served[queue][-1]


def _check_queue(ready: list[Ready], leases: list[tuple[int, int, tuple[int, int], Operation]]) -> None:
    """Compare each lease with the first of the jobs that were ready from before it was asked until it was answered."""
    heap: list[tuple[tuple[int, int], int]] = []  # (place, end)
    coming = iter([*ready, Ready(NEVER, NEVER, (0, 0))])
    upcoming = next(coming)
    for invoked, returned, last, one in leases:
        while upcoming.begin < invoked:
            heappush(heap, (upcoming.key, upcoming.end))
            upcoming = next(coming)
        aside: list[tuple[tuple[int, int], int]] = []
        while heap and heap[0][0] < last:
            key, end = heappop(heap)
            if end > returned:
                raise Violation("order", f"job {key[1]} of priority {-key[0]} was ready all the time: {one}")
            if end > invoked:
                aside.append((key, end))
        for entry in aside:
            heappush(heap, entry)


def check(history: History) -> Counter[str]:
    """Run all three.

    Returns: figures of what was met.  Raises: Violation.
    """
    book = Book(history)
    return totals(book) + jobs(book) + order(book)
