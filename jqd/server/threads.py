"""The threads beside the loop: each does its work in steps, with what is put into its queue.

Knows:         how a thread waits for its next item, and that a failure of it is final.
Must not know: what the steps do (committer.py, snapshots.py).

The work is a generator. It yields how long it would wait for an item, and is sent the item, or IDLE if none came
in that time. So the same steps run under a thread that really waits, and in a test or a simulation that decides
itself when one more step is taken.
"""

import threading
import time
from collections.abc import Callable, Generator
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

# Yields the seconds that it would wait, None for ever; is sent an item or IDLE.
Steps = Generator[float | None, Any, None]


class Idle(Enum):
    IDLE = "no item came in the time that the steps would wait"


IDLE: Final = Idle.IDLE


class Queue(Protocol):
    """The end of a queue that steps may look at between two items."""

    def empty(self) -> bool: ...

    def get(self) -> Any: ...  # noqa: ANN401


class Worker(Protocol):
    """What takes the steps."""

    @property
    def queue(self) -> Queue:
        """What put() fills."""
        ...

    def start(self, steps: Steps) -> None:
        """Begin to take the steps."""
        ...

    def put(self, item: Any) -> None:  # noqa: ANN401
        """Hand over the next item. From any thread."""
        ...

    def join(self) -> None:
        """Wait until the steps have come to their end."""
        ...


class Thread:
    """A `Worker` that is a thread of its own.

    Args:
        on_failure: called in this thread with what went wrong, whatever it was; no step follows.
    """

    def __init__(self, name: str, on_failure: Callable[[BaseException], object]) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.put = self.queue.put
        self._name = name
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None

    def start(self, steps: Steps) -> None:
        self._thread = threading.Thread(target=self._run, args=(steps,), name=self._name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        assert self._thread is not None, "not started"
        self._thread.join()

    def _run(self, steps: Steps) -> None:
        get, send = self.queue.get, steps.send
        try:
            wait_s = next(steps)
            while True:
                try:
                    item = get(timeout=wait_s)
                except Empty:
                    item = IDLE
                wait_s = send(item)
        except StopIteration:
            return
        except BaseException as error:  # noqa: BLE001 - whatever it was, the process cannot go on
            self._on_failure(error)


class Threads:
    """Where the daemon's threads come from, and the clock by which they measure what they wait for."""

    # Seconds of a clock that never goes back.
    monotonic_s: Callable[[], float] = staticmethod(time.monotonic)

    def make(self, name: str, on_failure: Callable[[BaseException], object]) -> Worker:
        return Thread(name, on_failure)
