"""Keeps leases alive, from a thread and a connection of its own.

Knows:         which jobs are held, for how long each was leased, when to extend them next, how far they say they are.
Must not know: what is done with a job. That its lease is lost is told to whoever holds it.

A thread, because a handler may keep the event loop, or all other threads' turns, busy for longer than its lease; a
connection of its own, because what else the worker has to say may be in the way. Python gives a thread its turn every 5 ms
whatever others compute; a C extension that keeps the interpreter to itself for longer than a lease needs `pool="process"`.

All that is held is extended in one request, three times in the shortest lease. What handlers say of their progress goes
along with an extend of those jobs, soon: the newest of each, at most four times a second. While the server does not answer it is
asked again: a job is lost only when the server says so. It gives each lease that was live at its start at least its own
time, or 30 s, so a restart ends none.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from jqd.client import requests
from jqd.client.requests import JOBS_PER_REQUEST_MAX, OK, HeldJob
from jqd.client.retry import Backoff
from jqd.client.sync import Client
from jqd.errors import JqdError, UnavailableError
from jqd.protocol.connection import Session

Key = tuple[int, int]
"""Job id and token."""

# Extends in the shortest lease: two may fail.
_BEATS_PER_LEASE: Final = 3
# Between two tries while the server does not answer.
_AGAIN_S: Final = 0.25
# Between two times that progress is told.
_PROGRESS_S: Final = 0.25
# The least time for an answer: a lease of 1 s is beaten for every 0.33 s.
_PATIENCE_S: Final = 1.0

log: Final = logging.getLogger("jqd.worker")


class Heart:
    """See the file's card. Started by start(), ended by stop().

    Args:
        on_lost: called in the heart's thread with the keys that the server does not know as held any more.
        on_cancel: likewise with those that somebody wants to end; again with each answer, as long as they are held.
        on_beat: called in the heart's thread after each answer.
        session: of the client that leased the jobs: as long as this thread has its connection, the session has one.
    """

    def __init__(
        self,
        url: str,
        worker: str,
        on_lost: Callable[[list[Key]], object],
        on_cancel: Callable[[list[Key]], object],
        on_beat: Callable[[], object] = lambda: None,
        session: Session | None = None,
    ) -> None:
        # One attempt to connect a call: the next beat is another one.
        self._client = Client(url, worker=worker, backoff=Backoff(give_up_ms=0))
        if session is not None:
            self._client._shared.session = session
        self._on_lost = on_lost
        self._on_cancel = on_cancel
        self._on_beat = on_beat
        self._news = threading.Condition()
        self._held: dict[Key, float] = {}  # -> seconds between two beats
        # On the monotonic clock, of the next beat, or of a look whether there is one.
        self._next_at = math.inf
        self._news_of: dict[Key, tuple[int | None, str]] = {}  # progress that the server has not been told
        self._told_at = 0.0  # when it was told last
        self._stops = False
        self._begun_at = 0.0  # when the pause before the next beat began
        self._thread = threading.Thread(target=self._run, name="jqd heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is held is not extended any more."""
        with self._news:
            self._stops = True
            self._news.notify()
        self._client.close()
        self._thread.join()

    def hold(self, jobs: Iterable[HeldJob], lease_s: float) -> None:
        """Extend these jobs from now on.

        Args: lease_s: how long they are leased from now.
        """
        beat_s = lease_s / _BEATS_PER_LEASE
        with self._news:
            for job in jobs:
                self._held[job.job_id, job.token] = beat_s
            # Seldom: between short jobs the thread sleeps on, for it wants its turn of the interpreter when it wakes.
            if time.monotonic() + beat_s < self._next_at:
                self._news.notify()

    def drop(self, keys: Iterable[Key]) -> None:
        """Extend these jobs no more."""
        with self._news:
            for key in keys:
                self._held.pop(key, None)
                self._news_of.pop(key, None)

    def report(self, key: Key, percent: int | None, text: str) -> None:
        """Tell the server soon how far a job is that is held. From any thread."""
        with self._news:
            if key in self._held:
                wakes = not self._news_of
                self._news_of[key] = percent, text
                if wakes:
                    self._news.notify()

    # --- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        answered = True
        self._begun_at = time.monotonic()
        while True:
            with self._news:
                is_beat = self._pause(_AGAIN_S if not answered else None)
                if is_beat is None:
                    return
                keys = list(self._held)
                patience_s = max(_PATIENCE_S, min(self._held.values(), default=0.0))
            if is_beat:
                answered = self._beat(keys, patience_s)
                self._begun_at = time.monotonic()
            else:
                self._tell_progress(patience_s)

    def _pause(self, longest_s: float | None) -> bool | None:
        """Wait for the next beat, or until progress is to be told: False. None: there is none. Under the condition's lock."""
        while not self._stops:
            if not self._held:
                self._next_at = math.inf
                self._news.wait()
                self._begun_at = time.monotonic()
                longest_s = None
                continue
            pause_s = min(self._held.values())
            self._next_at = self._begun_at + (pause_s if longest_s is None else min(pause_s, longest_s))
            left_s = self._next_at - time.monotonic()
            if left_s <= 0:
                return True
            if self._news_of:
                tell_s = self._told_at + _PROGRESS_S - time.monotonic()
                if tell_s <= 0:
                    return False
                left_s = min(left_s, tell_s)
            self._news.wait(left_s)
        return None

    def _tell_progress(self, patience_s: float) -> None:
        """Tell what is new of progress: a request for each thing that is said. What is not answered is told later."""
        with self._news:
            news, self._news_of = self._news_of, {}
        groups: dict[tuple[int | None, str], list[Key]] = {}
        for key, said in news.items():
            groups.setdefault(said, []).append(key)
        for (percent, text), keys in groups.items():
            if not self._extend(keys, patience_s, percent, text):
                with self._news:
                    for key, said in news.items():
                        if key in self._held:
                            self._news_of.setdefault(key, said)
                break
        self._told_at = time.monotonic()

    def _beat(self, keys: list[Key], patience_s: float) -> bool:
        """Extend what is held; False: not all of it was answered."""
        answered = self._extend(keys, patience_s)
        if answered:
            self._on_beat()
        return answered

    def _extend(self, keys: list[Key], patience_s: float, percent: int | None = None, text: str = "") -> bool:
        for first in range(0, len(keys), JOBS_PER_REQUEST_MAX):
            part = keys[first : first + JOBS_PER_REQUEST_MAX]
            command = requests.extend(part, progress_percent=percent, progress_text=text)
            try:
                reply = self._client.call(command, timeout=patience_s)
            except UnavailableError as error:
                if not self._stops:
                    log.warning("leases were not extended: %s", error)
                return False
            except JqdError:
                log.exception("leases cannot be extended")
                return False
            verdicts = (code for _, count, code in reply.results for _ in range(count))
            lost = [key for key, code in zip(part, verdicts, strict=True) if code != OK]
            if lost:
                self.drop(lost)
                self._on_lost(lost)
            if reply.cancel_marked:
                marked = {first + n for first, count in reply.cancel_marked for n in range(count)}
                self._on_cancel([key for key in part if key[0] in marked])
        return True
