"""How often a job was tried and failed, what that makes of it, and when it is tried again.

Knows:         protocol.md "Attempts, errors, crashes", "Retry policies": the numbers of a job only grow, and no faster
               than it is handed out (I8); they bound its deliveries, and a dead job has used up what its reason says
               (I18); what waits is due when it was said (I9).
Must not know: anything of jqd; the delays of a policy (backoffs.py).
"""

from tests.sim.rules import backoffs
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import SHOWN_DEFAULTS, Args, Job, Known, Violation, Where
from tests.sim.rules.queues import Queues


class Attempts:
    """Judges the numbers of a job."""

    def __init__(self, known: Known, queues: Queues, loose: Loose) -> None:
        self._hit = known.hit
        self._queues = queues
        self._loose = loose

    def bounds(self, job: Job, setting: str, lsn: int | None = None) -> tuple[int, int]:
        """Return the least and the greatest that max_retries or max_crashes can be for a job, now or ever (None)."""
        own = job.pool.shown[setting]
        if own is not None:
            return own, own
        shelf = self._queues.shelves.get(job.queue)
        usual: int = SHOWN_DEFAULTS[setting]  # type: ignore[assignment]
        if shelf is None:
            return usual, usual
        known = shelf.ever(setting) if lsn is None else shelf.can_be(setting, lsn, lsn)
        values = [usual if each is None else each for each in known]
        return min(values), max(values)

    def check_numbers(self, job: Job, info: Args, where: Where) -> None:
        """Attempts, errors and crashes only grow, and no faster than jobs are handed out."""
        state, attempt = info["state"], info["attempt"]
        errors, crashes = info.get("errors", 0), info.get("crashes", 0)
        if state in ("delayed", "ready", "leased") and (
            errors > self.bounds(job, "max_retries")[1] or crashes > self.bounds(job, "max_crashes")[1]
        ):
            raise Violation("I18", f"{where}; the limits are {job.pool.shown}")
        if state == job.state and (attempt, errors, crashes) == (job.attempt, job.errors, job.crashes):
            return
        if job.is_vague:
            return
        verbs = self._loose.verbs_on(job)
        is_watched = "lease" not in verbs
        fewest = job.attempt
        if job.state == "leased" and (not job.token or "release" in verbs):
            fewest -= 1
        if attempt < fewest or (is_watched and attempt > job.attempt):
            raise Violation("I8", str(where))
        if "requeue" in verbs:
            return
        self.check_growth(job, errors, crashes, verbs, is_watched, where)

    def check_growth(
        self, job: Job, errors: int, crashes: int, verbs: set[str], is_watched: bool, where: object
    ) -> None:
        """Only the end of a lease makes one more of either, and what a restart has ended makes none."""
        grown, crashed = errors - job.errors, crashes - job.crashes
        most = 1 if job.state == "leased" else 0
        if grown < 0 or crashed < 0 or (is_watched and grown + crashed > most):
            raise Violation("I8", f"{where}, after {job.errors} errors and {job.crashes} crashes")
        if crashed and is_watched and job.is_graced and job.state == "leased" and "extend" not in verbs:
            raise Violation("I8", f"{where}, after {job.crashes} crashes; its lease ran out after a restart")

    def check_reason(self, job: Job, info: Args) -> None:
        """A job is dead because of what its reason says (I18)."""
        shown, reason = job.pool.shown, info.get("reason")
        fits = {
            "retries": info.get("errors", 0) > self.bounds(job, "max_retries")[0],
            "crashes": info.get("crashes", 0) > self.bounds(job, "max_crashes")[0],
            "abandoned": job.once,
            "refused": job.id in self._loose.refused,
            "killed": job.id in self._loose.killed,
        }
        if not fits.get(reason, False):
            raise Violation("I18", f"{job} is dead because of {reason!r}: {info}, {shown}")
        self._hit(f"dead: {reason}")

    def backoff(self, job: Job, args: Args, failures: int, lo: int, hi: int) -> tuple[int, int]:
        """Return the shortest and the longest delay behind a failure, whichever policy held."""
        own = args.get("retry") or job.pool.shown["retry"]
        known = [own] if own is not None else self._queues.can_be(job.queue, "retry", lo, hi)
        windows = [backoffs.window_ms(policy, failures) for policy in known]
        return min(low for low, _ in windows), max(high for _, high in windows)

    def check_due(self, job: Job, info: Args, lo_ms: int, ms: int, where: Where) -> None:
        """A job waits for as long as it was said to: not shorter, nor longer."""
        left_ms = info.get("due_ms_left")
        if left_ms is None or not job.due_hi_ms or info["attempt"] != job.attempt or job.also:
            return
        if not left_ms:
            return  # it is due, and has not been looked at yet
        is_early, is_late = ms + left_ms < job.due_ms, lo_ms + left_ms > job.due_hi_ms
        if (is_early or is_late) and not self._loose.verbs_on(job):
            raise Violation(
                "I9", f"{where}: due in {left_ms} ms, which is not in {job.due_ms}..{job.due_hi_ms}"
            )
