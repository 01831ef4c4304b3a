"""The daemon in a simulated machine, over its runs: the shipped code from recovery to drain.

Knows:         in which order jqd.server.daemon starts and stops things, what a death leaves.
Must not know: clients, plans, what is expected.

The code that runs is jqd's: recover(), WalStore, Driver with its Connections, Snapshots and Committer. Its threads
take their steps when they are told to (jqd/server/threads.py), its sockets are network.py, its file system disk.py.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from jqd.core.engine import Engine
from jqd.core.model import Now
from jqd.errors import StorageError
from jqd.server import daemon
from jqd.server.config import Config
from jqd.server.driver import Driver
from jqd.server.threads import IDLE, Steps, Threads
from jqd.server.watermark import reserve_bytes
from jqd.storage.wal import WalStore
from tests.sim.disk import SimDisk
from tests.sim.loop import Clocks, EngineClock, SimLoop
from tests.sim.network import Stream
from tests.sim.oracle import Violation
from tests.storage.logs import DATA
from tests.support.faultfs import Crash


class Died(BaseException):
    """The daemon ended itself, as os._exit would: no line of it runs after this."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(repr(cause))
        self.cause = cause


def die(error: BaseException) -> NoReturn:
    if isinstance(error, Died | Crash | Violation):
        raise error
    raise Died(error) from error


class SimQueue:
    def __init__(self) -> None:
        self.items: deque[Any] = deque()

    def empty(self) -> bool:
        return not self.items

    def get(self) -> Any:
        return self.items.popleft()


class SimThread:
    """A `Worker` that takes a step when it is told to."""

    def __init__(self, name: str, clocks: Clocks) -> None:
        self.name = name
        self.queue = SimQueue()
        self.is_done = False
        self._clocks = clocks
        self._steps: Steps | None = None
        self._wait_s: float | None = None
        self._since_s = 0.0

    def start(self, steps: Steps) -> None:
        self._steps = steps
        self._since_s = self._clocks.boot_s()
        try:
            self._wait_s = next(steps)
        except StopIteration:
            self.is_done = True
        except BaseException as error:
            die(error)

    def put(self, item: Any) -> None:
        if not self.queue.items:
            self._since_s = self._clocks.boot_s()
        self.queue.items.append(item)

    def join(self) -> None:
        while not self.is_done:
            assert self.step(), f"{self.name} would wait for ever"

    def step(self) -> bool:
        """Take one step, if there is an item or the wait for one is over; tell whether there was."""
        if self.is_done:
            return False
        if self.queue.items:
            item = self.queue.items.popleft()
            now_s = self._clocks.boot_s()
        elif self._wait_s is not None and (now_s := self._clocks.boot_s()) - self._since_s >= self._wait_s:
            item = IDLE
        else:
            return False
        assert self._steps is not None
        try:
            self._wait_s = self._steps.send(item)
        except StopIteration:
            self.is_done = True
        except BaseException as error:
            die(error)
        self._since_s = now_s
        return True


class SimThreads(Threads):
    def __init__(self, clocks: Clocks) -> None:
        self.monotonic_s = clocks.boot_s
        self.made: list[SimThread] = []
        self._clocks = clocks

    def make(self, name: str, on_failure: Callable[[BaseException], object]) -> SimThread:
        thread = SimThread(name, self._clocks)
        self.made = [each for each in self.made if not each.is_done] + [thread]
        return thread


class House:
    """See the file's card.

    Args:
        settings: of the daemon, as Config has them.
    """

    def __init__(self, disk: SimDisk, clocks: Clocks, **settings: Any) -> None:
        self.disk = disk
        self.clocks = clocks
        self.config = Config(**{"data_dir": DATA, "unix": None, "max_connections": 64, **settings})
        self.loop = SimLoop(clocks)
        self.driver: Driver | None = None
        self.threads = SimThreads(clocks)
        self.streams: list[Stream] = []
        self.runs = 0

    @property
    def engine(self) -> Engine:
        assert self.driver is not None
        return self.driver.engine

    @property
    def reading(self) -> Now:
        """The clocks as the next request can be judged by: those of the turn under way, if there is one."""
        turn = self.driver._now if self.driver is not None else None
        return turn or self.clock.now()

    # --- runs ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover and begin to serve. Raises: Died, Crash; StorageError: it refuses to start."""
        assert self.driver is None
        self.loop = SimLoop(self.clocks)
        self.threads = SimThreads(self.clocks)
        self.streams = []
        store = WalStore(
            DATA,
            fs=self.disk,
            segment_bytes=self.config.segment_bytes,
            reserve_bytes=reserve_bytes(self.config.low_space_bytes),
        )
        engine = daemon.recover(store, self.config, clock_s=self.clocks.boot_s)
        self.store = store
        self.clock = EngineClock(self.clocks, engine.state.now.engine_ms)
        driver = Driver(
            engine,
            store,
            self.config,
            self.loop,  # type: ignore[arg-type]
            self.clock,  # type: ignore[arg-type]
            die,
            threads=self.threads,
        )
        driver.start("sim")
        self.driver = driver
        self.runs += 1

    def kill(self) -> None:
        """The process is gone; what it wrote is in the page cache, what it sent is in the sockets."""
        for stream in self.streams:
            stream.die()
        self.streams = []
        self._let_go()
        self.disk.kill()

    def stop(self) -> None:
        """SIGTERM: drain, seal, close. Clients read what they are sent."""
        assert self.driver is not None
        self.loop.run_task(self.driver.drain(), self._meanwhile)
        try:
            self.store.close()
        except StorageError as error:  # as daemon.run, whose exit code it becomes
            die(error)
        self._let_go()
        for stream in self.streams:
            stream.die()
        self.streams = []

    def _let_go(self) -> None:
        """Nobody asks this daemon any more. Its parts point to each other, and the collector is off."""
        if self.driver is not None:
            vars(self.driver.engine.state).clear()
        self.driver = None

    def _meanwhile(self) -> None:
        """The loop is idle and drains: the disk works, and time passes until the stalled are cut."""
        if not self.work():
            self.clocks.wait(100)

    def work(self) -> bool:
        """Let each thread take a step; tell whether one did."""
        moved = False
        for thread in list(self.threads.made):
            moved = thread.step() or moved
        return moved

    # --- connections --------------------------------------------------------------------------

    def connect(self) -> Stream:
        assert self.driver is not None
        stream = Stream(self.loop, self.driver.new_connection())
        self.streams = [each for each in self.streams if not each.is_lost] + [stream]
        return stream
