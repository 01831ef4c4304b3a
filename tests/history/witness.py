"""The witness check: the log says in which order everything happened, and in that order everything must be right.

A run is linearizable if there is one order of its operations that respects real time and in which a queue that does
one thing after the other gives the replies that were observed. To search for one is hard; here the daemon itself
names it, by LSNs. So it is enough to look whether that one is good, in O(n log n), and a pass *is* a linearization:

    1  LSNs respect real time: who asked after a reply had come got an LSN that is not below it, above it if
       something was changed
    2  what changed something stands in the log where its facts are; what did not, where its reply's LSN says
    3  requests whose outcome nobody knows are looked up in the log by session and request id: there, or dropped
    4  every fact has one request that explains it, or is what time does
    5  the model (model.py), stepped in this order, gives every reply as it was observed
    6  this order, too, respects real time; and the engine clock never ran faster than the machine's

Knows:         how LSNs, replies and facts belong together (protocol.md "Messages", "Sessions"; `jqctl wal dump`).
Must not know: code of the package under test. What it believes of the log: which facts it holds, and their clocks.
"""

import base64
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgpack

from tests.history.model import OK, Clock, Contradiction, Model, Refusal
from tests.history.operations import NEVER, Body, Fact, History, Operation, Violation, ids_in

# Refused before anything was looked at, for reasons that no history shows.
TURNED_AWAY: Final = frozenset({"draining", "busy", "overloaded", "storage_full"})
# Without requests the log has no records, and how long is not known: a standstill is assumed from here on, and leases
# are excused for that long and some more (protocol.md "Leases and tokens": 2 s, at most 30 s).
GAP_MS: Final = 300
EXCUSE_MS: Final = 2_500
EXCUSE_MS_MAX: Final = 32_500
# The daemon reads its clocks once a turn, and may stand still in it: what it reads then is judged by an older time.
CLOCK_SLACK_MS: Final = 1_500
# Fields of a reply that are times by clocks of the daemon, or its estimate of what something takes.
TIMES: Final = frozenset(
    {
        "wall_ms",
        "created_wall_ms",
        "changed_wall_ms",
        "lease_ms_left",
        "due_ms_left",
        "run_at_ms",
        "ready_age_ms",
        "memory_bytes",
    }
)


class Carried(NamedTuple):
    """What a RequestsAnswered says: a request was carried out, and what a retry of it would get."""

    operation: Operation
    token: int  # of a lease; 0: of another verb
    body: Body


@dataclass(slots=True)
class Placed:
    """An operation that changed nothing where it stands; `is_again`: the answer to a lease that was asked again."""

    lsn: int
    operation: Operation
    is_again: bool = False


def check(history: History) -> Counter[str]:
    """Look whether the order that the log says is a linearization.

    Returns: figures of what was met.
    Raises:  Violation.
    """
    _check_what_clients_said(history.operations)
    _check_real_time_of_lsns(history.operations)
    return _Witness(history).walk()


# --- before the log is looked at ----------------------------------------------------------------


def _check_what_clients_said(operations: Iterable[Operation]) -> None:
    """The client must have passed on what it was told."""
    for one in operations:
        if not one.status or not one.said or one.said.endswith("?"):
            continue
        allowed = {one.status}
        results = one.body.get("results") if one.is_answered else None
        if results and len(results) == 1 and results[0][1] == 1:
            allowed.add(results[0][2])
        if one.said not in allowed:
            raise Violation("client and server differ", f"the caller was told {one.said}: {one}")


def _check_real_time_of_lsns(operations: Iterable[Operation]) -> None:
    """A reply that came before a request was made does not know more than the reply to that one."""
    answered = sorted((one for one in operations if one.status), key=lambda one: one.returned)
    highest: list[Operation] = []  # of the first so many, the one with the highest LSN
    for one in answered:
        highest.append(one if not highest or one.lsn >= highest[-1].lsn else highest[-1])
    times = [one.returned for one in answered]
    for one in answered:
        before = bisect_right(times, one.invoked - 1)
        if before and highest[before - 1].lsn > one.lsn:
            raise Violation(
                "LSNs against real time", f"{highest[before - 1]}\n  came before this was asked: {one}"
            )


# --- the walk ---------------------------------------------------------------------------------


class _Witness:
    def __init__(self, history: History) -> None:
        self.model = Model()
        self.figures: Counter[str] = Counter(operations=len(history.operations), facts=len(history.facts))
        self._records = [list(facts) for _, facts in groupby(history.facts, key=lambda fact: fact.record)]
        self._check_lsns(history.facts)
        self._carried = self._look_up(history.operations)  # by record
        self._placed = deque(sorted(self._without_facts(history.operations), key=_place))
        self._order: list[Operation] = []
        self._clock = Clock(0, 0)
        self._run_lsn = 0  # of the newest start of the daemon
        self._lag_ms = self._lag_until_ms = 0
        self._lease_of: dict[int, Operation] = {}  # by token
        self._slowest = (
            0.0  # least of (engine clock - clock of the machine), in ms, over what was asked so far
        )
        self._clock_was_met = False

    @staticmethod
    def _check_lsns(facts: list[Fact]) -> None:
        for lsn, fact in enumerate(facts, 1):
            if fact.lsn != lsn:
                raise Violation("hole in the log", f"LSN {fact.lsn} stands where {lsn} is due")

    def _look_up(self, operations: Iterable[Operation]) -> dict[int, dict[str, deque[Carried]]]:
        """Find the requests that were carried out, by session and request id, in the order of the log."""
        asked = {(one.session, number): one for one in operations for number in one.ids}
        seen: set[tuple[str, int]] = set()
        carried: dict[int, dict[str, deque[Carried]]] = {}
        for facts in self._records:
            for fact in facts:
                if fact.kind != "RequestsAnswered":
                    continue
                session = fact.fields["session"]
                line = carried.setdefault(fact.record, {}).setdefault(session, deque())
                for answer in fact.fields["answers"]:
                    key = session, answer["request_id"]
                    if key not in asked:
                        raise Violation(
                            "never asked for", f"LSN {fact.lsn}: request {key[1]} of client {session}"
                        )
                    one = asked[key]
                    # A lease that is old may be asked anew under another id; nothing else is.
                    whole = key if one.verb == "lease" else (session, one.ids[0])
                    if whole in seen:
                        raise Violation("carried out twice", f"LSN {fact.lsn}: {one}")
                    seen |= {key, whole}
                    line.append(_carried(one, key[1], answer))
        self._check_outcomes(operations, seen)
        return carried

    def _check_outcomes(self, operations: Iterable[Operation], seen: set[tuple[str, int]]) -> None:
        for one in operations:
            is_there = bool(one.ids) and (one.session, one.ids[-1]) in seen
            if one.is_unknown:
                self.figures["unknown"] += 1
                self.figures["unknown, in the log"] += is_there
            elif not one.is_answered and is_there:
                raise Violation("refused and carried out", str(one))
            elif one.is_answered and not is_there and _changed(one):
                raise Violation("acknowledged and not in the log", str(one))
            self.figures["sent again"] += one.sends > 1

    def _without_facts(self, operations: Iterable[Operation]) -> Iterator[Placed]:
        """Yield what is placed by the LSN of its reply."""
        ends = {facts[0].record: facts[-1].lsn for facts in self._records}
        carried: set[int] = set()
        for record, lines in self._carried.items():
            for line in lines.values():
                for operation, token, _ in line:
                    carried.add(id(operation))
                    if not operation.is_answered or operation.lsn <= ends[record]:
                        continue
                    if operation.sends < 2:
                        raise Violation("LSN of a reply", f"its facts end at {ends[record]}: {operation}")
                    if token:
                        yield Placed(operation.lsn, operation, is_again=True)
        for one in operations:
            if one.status and not one.is_unknown and id(one) not in carried:
                yield Placed(one.lsn, one)

    def walk(self) -> Counter[str]:
        for index, facts in enumerate(self._records):
            starts = facts[0].kind == "DaemonStarted"
            self._place_up_to(facts[0].lsn - 1, None if starts else facts[0].engine_ms)
            self._read_clock(facts[0].engine_ms, starts=starts or not index)
            self._step_record(facts, self._carried.get(facts[0].record, {}))
        end = self._records[-1][-1].lsn if self._records else 0
        self._place_up_to(end, None)
        if self._placed:
            raise Violation("LSN of a reply", f"the log ends at {end}: {self._placed[0].operation}")
        self._check_real_time()
        return self.figures

    def _read_clock(self, engine_ms: int, *, starts: bool) -> None:
        gap_ms = engine_ms - self._clock.ms
        if gap_ms < 0:
            raise Violation("engine clock", f"it went from {self._clock.ms} back to {engine_ms}")
        if starts:
            self._lag_until_ms = 0
        elif gap_ms >= GAP_MS:
            lag_ms = gap_ms + EXCUSE_MS
            self._lag_ms = lag_ms if engine_ms > self._lag_until_ms else max(lag_ms, self._lag_ms)
            self._lag_until_ms = max(self._lag_until_ms, engine_ms + min(lag_ms, EXCUSE_MS_MAX))
        self._clock = self._clock_at(engine_ms, engine_ms)

    def _clock_at(self, engine_ms: int, latest_ms: int | None) -> Clock:
        return Clock(engine_ms, latest_ms, self._lag_ms if engine_ms <= self._lag_until_ms else 0)

    # --- one record -----------------------------------------------------------------------------

    def _step_record(self, facts: list[Fact], lines: dict[str, deque[Carried]]) -> None:
        last_lsn = facts[-1].lsn
        queue = deque(facts)
        while queue:
            self._place_up_to(queue[0].lsn - 1, queue[0].engine_ms)
            fact = queue[0]
            line = _explaining(lines.values(), fact)
            if line is None:
                self._apply(queue.popleft())
            elif fact.kind == "JobsSubmitted" and line[0].operation.verb == "submit":
                self._step_run(queue.popleft(), lines, last_lsn)
            else:
                carried = line.popleft()
                own: list[Fact] = []
                while queue and (not own or _explains(carried, queue[0])):
                    own.append(queue.popleft())
                self._step(carried, own, last_lsn)
        for line in lines.values():
            for operation, _, _ in line:
                raise Violation("answered without facts", f"in the record up to LSN {last_lsn}: {operation}")

    def _step_run(self, fact: Fact, lines: dict[str, deque[Carried]], last_lsn: int) -> None:
        """Step the submits that one fact stands for: neighbours of one connection share it."""
        end = _end_of_jobs(fact)
        while self.model.next_id < end:
            one = replace(fact, fields=fact.fields | {"first_id": self.model.next_id})
            line = _explaining(lines.values(), one)
            if line is None:
                raise Violation("unexplained fact", f"job {self.model.next_id}: nobody submitted it: {fact}")
            before = self.model.next_id
            self._step(line.popleft(), [], last_lsn, first_lsn=fact.lsn)
            if self.model.next_id != before + 1:
                raise Violation("unexplained fact", f"it is part of a run of submits: {fact}")

    def _step(self, carried: Carried, facts: list[Fact], last_lsn: int, first_lsn: int = 0) -> None:
        """Step the model by what changed something, and compare."""
        one, token, remembered = carried
        first_lsn = first_lsn or facts[0].lsn
        said = one.body if one.is_answered and not token else remembered
        self.model.touched.clear()
        try:
            right = self._right_answer(one, said, token, facts, self._clock)
        except Contradiction as error:
            raise Violation("impossible", f"LSN {first_lsn}: {error}: {one}") from None
        except Refusal as error:
            raise Violation("wrong reply", f"LSN {first_lsn}: must be {error.code}: {one}") from None
        named = sorted(job_id for fact in facts for job_id in _ids(fact))
        if facts and named != sorted(self.model.touched):
            raise Violation("other jobs", f"{named} in the log, not {sorted(self.model.touched)}: {one}")
        if token:
            self._lease_of[token] = one
        elif not _agree(right, remembered):
            raise Violation("other answer remembered", f"LSN {first_lsn}: {remembered}, not {right}: {one}")
        self._note_order(one, first_lsn)
        if not one.is_answered:
            return
        if one.lsn < (facts[-1].lsn if facts else first_lsn):
            raise Violation("LSN of a reply", f"below its own facts: {one}")
        if not token:
            self._compare(one, right, first_lsn)
        elif one.lsn <= last_lsn:
            # Asked again before anything else happened: without jobs that must not be sent twice.
            held = self.model.leased_again(token, self.model.touched)
            again = {"token": token if held else 0, "jobs": held}
            if one.sends < 2 or not _agree(again, one.body):
                self._compare(one, right, first_lsn)

    def _right_answer(self, one: Operation, said: Body, token: int, facts: list[Fact], clock: Clock) -> Body:
        """Step the model by a request that may change something.

        said: its reply, where the clock alone does not decide.
        """
        model, args = self.model, one.args
        match one.verb:
            case "submit":
                return model.submit(args, clock)
            case "submit_many":
                return model.submit_many(args, clock)
            case "lease":
                return model.lease(args, clock, token, one.worker)
            case "extend":
                return model.extend(args, clock, said)
            case "ack":
                return model.ack(args, clock, said)
            case "fail":
                due = dict(job for fact in facts if fact.kind == "JobsRetried" for job in fact.fields["jobs"])
                return model.fail(args, clock, said, due)
            case "release":
                return model.release(args, clock, said)
            case "cancel":
                return model.cancel(args)
            case "requeue":
                return model.requeue(args)
            case verb:
                raise AssertionError(f"{verb} is no verb of a history, or it changes nothing: {one}")

    def _apply(self, fact: Fact) -> None:
        """Let the model do what nobody asked for."""
        fields, clock, model = fact.fields, self._clock, self.model
        try:
            match fact.kind, fields.get("cause"), fields.get("reason"):
                case "DaemonStarted", _, _:
                    model.start(fields["epoch"], clock)
                    self.figures["starts"] += 1
                case "TimeAdvanced", _, _:
                    model.promote(clock)
                case "JobsRetried", ("crash" | "restart") as cause, _:
                    model.expire_and_retry(fields["jobs"], cause, fields["error"], clock)
                    self.figures["leases that ran out"] += 1
                case "JobsDied", ("crash" | "restart") as cause, ("crashes" | "abandoned") as reason:
                    model.expire_and_bury(ids_in(fields["ranges"]), reason, cause, fields["error"], clock)
                    self.figures["leases that ran out"] += 1
                case "JobsReleased", _, _:
                    self._take_back(fact)
                case (("SessionOpened" | "RequestsAnswered"), _, _):
                    pass
                case _:
                    raise Violation("unexplained fact", str(fact))
        except Contradiction as error:
            raise Violation("impossible", f"LSN {fact.lsn}: {error}") from None

    def _take_back(self, fact: Fact) -> None:
        for job_id in _ids(fact):
            lease = self._lease_of.get(self.model.jobs[job_id].token)
            jobs = lease.body.get("jobs", ()) if lease is not None else ()
            if lease is not None and lease.lsn < fact.lsn and any(job["job_id"] == job_id for job in jobs):
                raise Violation("unexplained fact", f"{fact} takes back what was told: {lease}")
        self.model.take_back(_ids(fact))
        self.figures["leases taken back"] += 1

    # --- what changed nothing -------------------------------------------------------------------

    def _place_up_to(self, lsn: int, latest_ms: int | None) -> None:
        """Check what stands between the facts so far and the next one, by whose time it had happened."""
        while self._placed and self._placed[0].lsn <= lsn:
            placed = self._placed.popleft()
            one = placed.operation
            if placed.is_again:
                ids = [job["job_id"] for job in one.body["jobs"]]
                held = self.model.leased_again(_token_in(one), ids)
                if held != one.body["jobs"]:
                    raise Violation("wrong reply", f"LSN {lsn}: asked again, it still holds {held}: {one}")
                continue
            self._note_order(one, 0)
            if one.status in TURNED_AWAY:
                continue
            try:
                right = self._right_look(one, self._clock_at(self._clock.ms, latest_ms))
            except Refusal as error:
                if one.status != error.code:
                    raise Violation("wrong reply", f"LSN {one.lsn}: must be {error.code}: {one}") from None
                continue
            except Contradiction:
                raise Violation("acknowledged and not in the log", str(one)) from None
            if not one.is_answered:
                raise Violation("wrong reply", f"LSN {one.lsn}: must be {right}: {one}")
            self._compare(one, right, one.lsn)

    def _right_look(self, one: Operation, clock: Clock) -> Body:
        """Return what must be answered by a request that changes nothing."""
        model, args = self.model, one.args
        match one.verb:
            case "get":
                return model.get(args)
            case "list":
                return model.list(args)
            case "queues":
                return model.queues(args)
            case "lease":
                # A daemon that stops sends everybody away who waits, also if the last thing it does makes jobs ready.
                if model.has_ready(args) and not (args.get("wait_ms") and clock.latest_ms is None):
                    raise Violation("wrong reply", f"LSN {one.lsn}: there is something to lease: {one}")
                return {"token": 0, "lease_ms_left": 0, "jobs": []}
        model.touched.clear()
        right = self._right_answer(one, one.body, 0, [], clock)
        if model.touched:
            raise Violation("acknowledged and not in the log", f"must have changed {model.touched}: {one}")
        return right

    def _compare(self, one: Operation, right: Body, lsn: int) -> None:
        self.figures["replies compared"] += 1
        if not _agree(right, one.body):
            raise Violation("wrong reply", f"LSN {lsn}: must be {right}: {one}")

    # --- real time --------------------------------------------------------------------------------

    def _note_order(self, one: Operation, lsn: int) -> None:
        self._order.append(one)
        if not lsn:
            return
        engine_ms = self._clock.ms
        if self._clock_was_met and engine_ms - one.returned / 1e6 > self._slowest + CLOCK_SLACK_MS:
            raise Violation("engine clock", f"LSN {lsn}: it is ahead of the machine's: {one}")
        behind = engine_ms - one.invoked / 1e6
        self._slowest = min(self._slowest, behind) if self._clock_was_met else behind
        self._clock_was_met = True

    def _check_real_time(self) -> None:
        """Nothing may stand behind something that was only asked after it had its reply."""
        youngest: Operation | None = None  # asked last, of those so far
        for one in self._order:
            if youngest is not None and one.returned < youngest.invoked:
                raise Violation(
                    "order against real time", f"{youngest}\n  stands before, and came after: {one}"
                )
            if youngest is None or one.invoked > youngest.invoked:
                youngest = one


# --- what belongs together ----------------------------------------------------------------------

_KINDS: Final = {
    "submit": {"JobsSubmitted"},
    "submit_many": {"JobsSubmitted"},
    "lease": {"JobsLeased"},
    "extend": {"LeasesExtended"},
    "ack": {"JobsDone", "JobsDied"},
    "fail": {"JobsRetried", "JobsDied"},
    "release": {"JobsReleased"},
    "cancel": {"JobsCancelled"},
    "requeue": {"JobsRequeued"},
}


def _carried(operation: Operation, number: int, answer: Body) -> Carried:
    if number != operation.ids[-1]:  # asked anew under another id: whoever had this one got no reply
        operation = replace(operation, ids=[number], returned=NEVER, status="", lsn=0, body={}, said="")
    if "token" in answer:
        return Carried(operation, int(answer["token"]), {})
    return Carried(operation, 0, msgpack.unpackb(base64.b64decode(answer["reply_base64"])))


def _place(placed: Placed) -> tuple[int, int]:
    return placed.lsn, placed.operation.invoked


def _token_in(lease: Operation) -> int:
    return int(lease.body["token"])


def _changed(one: Operation) -> bool:
    """Tell whether a reply says that something was changed."""
    body = one.body
    match one.verb:
        case "submit" | "submit_many":
            return True
        case "lease":
            return bool(body["jobs"])
        case "cancel" | "requeue":
            return bool(body["count"])
        case _:
            return any(code == OK for _, _, code in body.get("results", ()))


def _explaining(lines: Iterable[deque[Carried]], fact: Fact) -> deque[Carried] | None:
    """Return the session whose next request explains a fact, one that names its jobs before one that does not."""
    able = [line for line in lines if line and _explains(line[0], fact)]
    return next((line for line in able if not _is_by_filter(line[0].operation)), able[0] if able else None)


def _explains(carried: Carried, fact: Fact) -> bool:
    one, token, body = carried
    if fact.kind not in _KINDS.get(one.verb, ()) or fact.fields.get("cause") in ("crash", "restart"):
        return False
    ids = _ids(fact)
    match one.verb:
        case "submit":
            return bool(fact.fields["first_id"] <= body["job_id"] < _end_of_jobs(fact))
        case "submit_many":
            return any(first == fact.fields["first_id"] for first, _, _ in body["jobs"])
        case "lease":
            return bool(fact.fields["token"] == token)
        case "extend":
            if all(fact.fields["token"] != item[0] for item in one.args["items"]):
                return False
        case "cancel" | "requeue" if _is_by_filter(one):
            return bool(body["count"] == len(ids))
    return any(first <= ids[0] < first + count for first, count, code in body["results"] if code == OK)


def _is_by_filter(one: Operation) -> bool:
    return one.args.get("filter") is not None


def _ids(fact: Fact) -> list[int]:
    fields = fact.fields
    if "first_id" in fields:
        return list(range(fields["first_id"], _end_of_jobs(fact)))
    if "jobs" in fields:
        return [job_id for job_id, _ in fields["jobs"]]
    return list(ids_in(fields["ranges"]))


def _end_of_jobs(fact: Fact) -> int:
    return int(fact.fields["first_id"]) + len(fact.fields["payloads"])


def _agree(right: Body, observed: Body) -> bool:
    """Compare bodies but for times. Of replies with parts, what the model does not say (a cursor) is not compared."""
    if any(_without_times(observed.get(name)) != value for name, value in right.items()):
        return False
    return "state" not in right or observed.keys() - TIMES == right.keys()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(each) for name, each in value.items() if name not in TIMES}
    if isinstance(value, list):
        return [_without_times(each) for each in value]
    return value
