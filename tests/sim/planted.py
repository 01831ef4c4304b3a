"""Bugs that can be switched on by name: what the simulator cannot find with one of them, it cannot find at all.

Knows:         where in the shipped code a line stands that must not be otherwise.
Must not know: how the simulator finds out.

A bug is a replacement in the source of one function, which is compiled anew in its own module while the bug is on:
no copy of the package, and a text that is no longer there is an error, so that a bug moves with the code.

    with planted("token not checked"):
        run(make_plan(7))
"""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple


class Planted(NamedTuple):
    """One bug.

    Attributes:
        where: module and function, or module and class.method, with a colon between.
        old, new: the text that is replaced; it stands there once.
        seeds: plans that may pass before one fails.
        begin: of these, plans that are known not to show it, and are passed over: a rare bug would take CI minutes.
    """

    where: str
    old: str
    new: str
    seeds: int = 40
    begin: int = 0


PLANTED: Final = {
    # --- what is acknowledged, and when ---
    "acknowledged before the sync": Planted(
        "jqd.server.committer:Committer._commit",
        "self._store.append(records)",
        "self._on_durable(records[-1].first_lsn + records[-1].count - 1); self._store.append(records)",
        200,
    ),
    "reads do not wait for the disk": Planted(
        "jqd.server.driver:Driver._finish_turn", "elif not self._waiting:", "elif True:", 200
    ),
    "replies leave a turn early": Planted(
        "jqd.server.driver:Driver._durable",
        "waiting[0].lsn <= lsn",
        "True",
        100,
    ),
    "append failed, and it goes on": Planted(
        "jqd.storage.wal:WalStore.append",
        "self._poison(error)\n        raise",
        "pass",
        400,
    ),
    "failed sync is tried again": Planted(
        "jqd.storage.segment:SegmentWriter.sync",
        "self._fs.sync(self._handle)",
        "try:\n    self._fs.sync(self._handle)\nexcept OSError:\n    self._fs.sync(self._handle)",
        400,
    ),
    # --- files ---
    "segment whose name is not durable": Planted(
        "jqd.storage.directory:Directory.publish", "self._fs.sync_directory(dirname(path))", "pass", 200
    ),
    "short write ignored": Planted(
        "jqd.storage.segment:SegmentWriter._write",
        "write_all(self._fs, self._handle, data)",
        "self._fs.write(self._handle, data)",
        200,
    ),
    "torn tail kept in place": Planted(
        "jqd.storage.wal:WalStore._recover",
        "data[: end.offset])",
        "data)",
        200,
    ),
    "segments go before the second snapshot is there": Planted(
        "jqd.storage.wal:WalStore._trim",
        "if len(kept) < KEPT_SNAPSHOTS:\n        return",
        "if not kept:\n        return",
        400,
    ),
    "snapshot gets its name unsynced": Planted(
        "jqd.storage.snapshot:SnapshotWriter.finish", "self._fs.sync(self._handle)", "pass", 400
    ),
    "clean mark stays after a start": Planted(
        "jqd.storage.wal:WalStore._start_segment",
        "self._store._replace(segment_no=segment_no, clean_bytes=0)",
        "self._store._replace(segment_no=segment_no, clean_bytes=self._store.clean_bytes)",
        400,
    ),
    # --- snapshots ---
    "snapshot forgets the errors of a job": Planted(
        "jqd.core.dump:_add", "            job.errors,\n", "            0,\n", 200
    ),
    "snapshot forgets the answers of sessions": Planted(
        "jqd.core.dump:_session",
        "[(each, record.answers[each]) for each in record.order]",
        "[]",
        200,
    ),
    "change during the walk is in the snapshot": Planted(
        "jqd.core.dump:Dump.keep", "for job in jobs:", "for job in ():", 200
    ),
    "snapshot forgets that a lease was there at the start": Planted(
        "jqd.core.dump:_lease_index", "lease.session, lease.restarted", "lease.session, False", 400
    ),
    # --- leases and tokens ---
    "token not checked": Planted("jqd.core.holding:_verdict", "job.lease.token != token or ", "", 100),
    "token of the first job counts for all": Planted(
        "jqd.core.holding:_held",
        "if job is None or job.lease is not lease:",
        "if job is None or job.lease is None:",
        400,
    ),
    "lease over at its deadline is still good": Planted(
        "jqd.core.holding:_verdict",
        "job.lease.deadline_ms <= judged_ms",
        "job.lease.deadline_ms < judged_ms",
        400,
        begin=60,
    ),
    "epoch does not rise": Planted(
        "jqd.core.leasing:next_epoch",
        "max(state.epoch + 1, date if date <= model.EPOCH_DATE_MAX else 0)",
        "max(state.epoch, 1)",
        100,
    ),
    "leases end at a restart": Planted(
        "jqd.core.state:State.start",
        "lease.deadline_ms = max(lease.deadline_ms, now.engine_ms + grace_ms)",
        "pass",
        200,
    ),
    "standstill charged to workers": Planted(
        "jqd.core.passing:expire_leases",
        "judged_ms = judged_at_ms(state, now)",
        "judged_ms = now.engine_ms",
        200,
    ),
    "grant whose reply was lost stays": Planted(
        "jqd.core.leasing:take_back", "if held:", "if not held:", 400
    ),
    # --- attempts ---
    "attempt not counted": Planted("jqd.core.state:State.lease_jobs", "job.attempt += 1", "pass", 50),
    "released attempt counts": Planted("jqd.core.state:State.give_back", "job.attempt -= 1", "pass", 100),
    "one retry too many": Planted(
        "jqd.core.passing:_crash",
        "job.crashes + 1 > settings.max_crashes(job, state)",
        "job.crashes > settings.max_crashes(job, state)",
        400,
    ),
    "restart counts as a crash": Planted(
        "jqd.core.passing:_crash", '"restart" if lease.restarted else "crash"', '"crash"', 200
    ),
    "at-most-once handed out again": Planted(
        "jqd.core.passing:_crash", 'job.options.delivery == "at_most_once"', "False", 200
    ),
    "at-most-once sent twice to a retried lease": Planted(
        "jqd.core.leasing:leased_again", 'if job.options.delivery == "at_least_once"', "if True", 400
    ),
    # --- time and order ---
    "a millisecond early": Planted(
        "jqd.core.state:State.promote", "now.engine_ms, limit", "now.engine_ms + 1, limit", 200
    ),
    "date by the engine's clock": Planted(
        "jqd.core.state:State.promote",
        "self.date_timers.pop_due(now.wall_ms,",
        "self.date_timers.pop_due(now.wall_ms + 5_000,",
        400,
    ),
    "what comes back goes to the end": Planted(
        "jqd.core.state:State._wait",
        "queue.ready.put_back(job.options.priority, job.id)",
        "queue.ready.append(job.options.priority, job.id)",
        200,
    ),
    "jump of the wall clock ends delays": Planted(
        "jqd.core.state:State.promote",
        "self.delay_timers.pop_due(now.engine_ms, limit)",
        "self.delay_timers.pop_due(self.now.engine_ms + max(0, now.wall_ms - self.now.wall_ms), limit)",
        200,
    ),
    # --- retries ---
    "retry policy of a queue is not asked": Planted(
        "jqd.core.settings:retry_policy",
        " or state.queues[job.options.queue].settings.retry",
        "",
        200,
        begin=40,
    ),
    "retry policy of a fail is not asked": Planted(
        "jqd.core.holding:fail", "command.retry or settings", "settings", 200
    ),
    "max_crashes of a queue is not asked": Planted(
        "jqd.core.settings:max_crashes",
        "state.queues[job.options.queue].settings.max_crashes",
        "None",
        200,
    ),
    "at-most-once handed out again after a restart": Planted(
        "jqd.core.passing:_crash",
        'job.options.delivery == "at_most_once"',
        'job.options.delivery == "at_most_once" and cause != "restart"',
        200,
    ),
    # --- keys ---
    "dedupe key outlives its job": Planted(
        "jqd.core.state:State._give_up_key", "self.drop_key(name)", "pass"
    ),
    "job frees the key of another one": Planted(
        "jqd.core.state:State._give_up_key", "key.job_id == job.id and ", "", 200
    ),
    "dedupe key lost in a snapshot": Planted(
        "jqd.core.dump:Dump._take_keys",
        "[KeysRestored(keys)]",
        '[KeysRestored({name: keys[name] for name in keys if name[0] != "d"})]',
        200,
    ),
    "idempotency key lost in a snapshot": Planted(
        "jqd.core.dump:Dump._take_keys",
        "[KeysRestored(keys)]",
        '[KeysRestored({name: keys[name] for name in keys if name[0] != "i"})]',
        200,
    ),
    "key lives a millisecond too long": Planted(
        "jqd.core.state:State.key",
        "key.due_ms <= now.engine_ms",
        "key.due_ms < now.engine_ms",
        200,
        begin=165,
    ),
    "idempotency key does not mind what is submitted": Planted(
        "jqd.core.keyed:_answered", "known.content != content", "False", 100
    ),
    "debounce keeps the first time": Planted(
        "jqd.core.keyed:_taken", 'fields.dedupe == "debounce"', "False", 100
    ),
    "requeued job has no key": Planted(
        "jqd.core.state:State.revive",
        "self._take_key(job.id, options, now)",
        "pass",
        400,
        begin=315,
    ),
    # --- time to be started ---
    "expired job handed out": Planted(
        "jqd.core.leasing:_candidates",
        "expires_ms is not None and job.attempt == 0 and expires_ms <= now.wall_ms",
        "False",
        400,
        begin=25,
    ),
    "job expires a millisecond late": Planted(
        "jqd.core.passing:expire_jobs", "now.wall_ms, limit", "now.wall_ms - 1, limit", 200
    ),
    "released job does not expire": Planted(
        "jqd.core.state:State.give_back",
        "self.expiry_timers.push(options.expires_wall_ms, job.id)",
        "pass",
        200,
    ),
    # --- updates ---
    "updated job loses its place": Planted(
        "jqd.core.state:State.update_job",
        "queue.ready.put_back(options.priority, job_id)",
        "queue.ready.append(options.priority, job_id)",
        100,
    ),
    "updated job stands at two places": Planted(
        "jqd.core.state:State.update_job", "queue.ready.remove_run(old.priority, job_id, 1)", "pass", 100
    ),
    "update makes a new submit of a job": Planted(
        "jqd.core.state:State.move_job", "changed = job.changed if stays else now", "changed = now", 200
    ),
    # --- queues ---
    "pause forgotten in a snapshot": Planted(
        "jqd.core.dump:Dump.__init__",
        "name: queue.settings for",
        "name: replace(queue.settings, paused=False) for",
        200,
    ),
    "paused queue is drawn from": Planted(
        "jqd.core.state:State.ready_ids", " or queue.settings.paused", "", 100
    ),
    "who waits does not notice that a pause is over": Planted(
        "jqd.core.state:State.set_queue", "self.woken[name] = None", "pass", 400
    ),
    "queue takes one job too many": Planted(
        "jqd.core.submitting:check_room",
        "queue.length + count > limit:",
        "queue.length + count > limit + 1:",
        100,
        begin=40,
    ),
    "queue is full one job too early": Planted(
        "jqd.core.submitting:check_room",
        "queue.length + count > limit:",
        "queue.length + count >= limit:",
        100,
    ),
    "weights of the last grant": Planted(
        "jqd.core.leasing:_drawn", "(state.grant + 1) * _GOLDEN", "state.grant * _GOLDEN", 100
    ),
    # --- cancel of running jobs ---
    "cancel mark lost in a snapshot": Planted(
        "jqd.core.dump:_add",
        "            job.outcome,\n",
        "            job.outcome and replace(job.outcome, cancel_marked=False),\n",
        200,
    ),
    "start takes cancel marks for done with": Planted(
        "jqd.core.state:State.start",
        "lease.restarted = True",
        "lease.restarted = True\n"
        "self._unmark([job for run in lease.ranges for job in self.run(*run) if job and job.lease is lease])",
        200,
    ),
    "marked job is tried again": Planted("jqd.core.passing:_crash", "job.cancel_marked", "False", 200),
    "marked job is released": Planted(
        "jqd.core.holding:release", "held, marked = without_marked(held, state)", "marked = []", 200
    ),
    "extend does not tell of marks": Planted(
        "jqd.core.holding:extend", "cancel_marked=marked", "cancel_marked=[]", 200
    ),
    # --- clients that are gone ---
    "any client that comes keeps the leases of another one": Planted(
        "jqd.core.engine:Engine._attach",
        "self._leaving.pop(session, None)",
        "self._leaving.clear()",
        400,
    ),
    "no time to come back": Planted(
        "jqd.core.engine:Engine.disconnect",
        "self._leaving[caller.session] = now.engine_ms + self.disconnect_grace_ms",
        "self._leaving[caller.session] = now.engine_ms",
        200,
    ),
    # --- results, progress, waits ---
    "result returned after its time": Planted(
        "jqd.core.reading:shown_result", "due_ms <= now.engine_ms", "False", 100
    ),
    "result returned in the millisecond of its end": Planted(
        "jqd.core.reading:shown_result", "due_ms <= now.engine_ms", "due_ms < now.engine_ms", 100
    ),
    "result gone a millisecond early": Planted(
        "jqd.core.passing:forget_results", "now.engine_ms, limit", "now.engine_ms + 1, limit", 100
    ),
    "progress outlives its attempt": Planted(
        "jqd.core.state:State.lease_jobs", "self._set_progress(job, None)", "pass", 100
    ),
    "who waits is not told": Planted(
        "jqd.core.state:State._note_ended", "self.ended[job.id] = None", "pass", 100
    ),
    "progress of who holds nothing is taken": Planted(
        "jqd.core.holding:extend",
        "if says_progress and held and has_room(state, each_bytes * sum(count for _, count in held)):\n"
        "            emit(ProgressReported(held, ",
        "told = [run for run in ranges if all(job and job.lease for job in state.pages.run(*run))]\n"
        "if says_progress and told:\n"
        "    emit(ProgressReported(told, ",
        100,
    ),
    "progress lost in a snapshot": Planted(
        "jqd.core.dump:_add",
        "            job.outcome,\n",
        "            job.outcome and replace(job.outcome, progress=None),\n",
        200,
    ),
    "who waits for all is told of the first": Planted(
        "jqd.core.waiting:_is_met", "if command.all:", "if False:", 100
    ),
    "who waits is forgotten when its time is over": Planted(
        "jqd.core.waiting:Waits.expire",
        "self._answer_as_it_is(self._parked[self.timers.first()[1]], now)",
        "self._unpark(self._parked[self.timers.first()[1]])",
        100,
    ),
    "who waits is left alone by a stop": Planted(
        "jqd.core.engine:Engine.stop", "self._waits.answer_all(now)", "pass", 200
    ),
    # --- memory ---
    "memory of a forgotten job is not given back": Planted(
        "jqd.core.state:State.forget", "self._count_bytes(queue, tenant, -size)", "pass", 200
    ),
    "memory of a payload is not given back": Planted(
        "jqd.core.state:State.finish", "self.memory.bytes -= freed", "pass", 100
    ),
    "jobs are taken beyond the limit of memory": Planted(
        "jqd.core.submitting:submit",
        "state.memory.bytes + size > state.memory.soft_bytes",
        "False",
        400,
        begin=145,
    ),
    "refused although there is memory": Planted(
        "jqd.core.deciding:has_room",
        "<= state.memory.soft_bytes",
        "<= state.memory.soft_bytes // 8",
        400,
    ),
    "jobs that have ended take more than their share": Planted(
        "jqd.core.engine:Engine._tick",
        "state.memory.ended_bytes > state.memory.ended_bytes_max",
        "state.memory.ended_bytes > 2 * state.memory.ended_bytes_max",
        400,
    ),
    # --- sweeping ---
    "purge takes leased jobs": Planted(
        "jqd.core.sweeping:_by_ids",
        "elif job.state in accepted:",
        "elif job.state in accepted or job.lease:",
        200,
    ),
    "requeue keeps the errors": Planted(
        "jqd.core.state:State.revive", "job.errors = job.crashes = 0", "pass", 200
    ),
    # --- sessions ---
    "retried request is carried out again": Planted(
        "jqd.core.engine:Engine._answered", "answer = record.answers.get(request_id)", "return None", 100
    ),
    "dead connection is served": Planted(
        "jqd.core.engine:Engine.withdraw", "self._unpark(parked)", "pass", 200
    ),
}


def _find(where: str) -> tuple[Any, str, Any]:
    """Return the object that holds a function, its name there, and the function."""
    module_name, _, path = where.partition(":")
    holder: Any = import_module(module_name)
    *outer, name = path.split(".")
    for each in outer:
        holder = getattr(holder, each)
    return holder, name, inspect.getattr_static(holder, name)


def _changed(where: str, old: str, new: str) -> tuple[Any, str, Any, Any]:
    holder, name, function = _find(where)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(old) != 1:
        raise LookupError(f"{where}: {old!r} stands there {source.count(old)} times")
    at = source.index(old)
    indent = source[source.rindex("\n", 0, at) + 1 : at]
    if not indent.strip():  # a replacement of several lines stands where its first one does
        new = new.replace("\n", "\n" + indent)
    made: dict[str, Any] = {}
    code = compile(source.replace(old, new), f"<planted in {where}>", "exec", dont_inherit=True)
    exec(code, function.__globals__, made)
    return holder, name, function, made[name]


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have a bug while the context lasts; "": none. Functions that others have imported by name are changed there too."""
    if not name:
        yield
        return
    bug = PLANTED[name]
    holder, attribute, function, buggy = _changed(bug.where, bug.old, bug.new)
    code = function.__code__
    function.__code__ = buggy.__code__  # whoever has the function has the bug
    try:
        yield
    finally:
        function.__code__ = code
    assert getattr(holder, attribute)
