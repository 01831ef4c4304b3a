"""The daemon from start to exit: recover, listen, serve, drain.

Knows:         the order in which things start and stop, and which failure is which exit code.
Must not know: the rules of jobs, the bytes of the log, how an address is opened.

                                                                               systemd is told
    start  take passed sockets -> lock and read the log -> check the clock     EXTEND_TIMEOUT_USEC, STATUS
           -> listen -> say `ready`                                            READY, STATUS; then WATCHDOG
    stop   SIGTERM or SIGINT: no new connection or request; replies out;       STOPPING, STATUS
           log sealed and closed; exit 0
    fail   exit at once, without another reply: 74 for the disk, 70 for a broken invariant
"""

import asyncio
import faulthandler
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any, Final, NoReturn

import uvloop

from jqd import __version__
from jqd.core.engine import Engine, ReplayFailed
from jqd.core.model import DAY_MS
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.errors import EXIT_INVARIANT_BROKEN, ConfigurationError, Corruption, DataDirUnusable, StorageError
from jqd.server import log as logging
from jqd.server.config import Config
from jqd.server.driver import Clock, Driver
from jqd.server.listeners import open_listeners, take_passed_sockets
from jqd.server.machine import spare_address_space
from jqd.server.notify import SILENT, Notifier
from jqd.server.watermark import reserve_bytes
from jqd.storage.base import Store
from jqd.storage.directory import WHAT_TO_DO
from jqd.storage.wal import WalStore

# A clock that lies further back than this was set wrong, or the store is a copy from the future.
CLOCK_BACK_MS_MAX: Final = DAY_MS
# How often recovery says how far it is. It looks between two records, and before them a segment of up to 1 GiB
# is read, so the time it asks for is far more than the interval.
_PROGRESS_S: Final = 1.0
_EXTEND_TIMEOUT_US: Final = 60_000_000

# How long the commit thread, back from the disk, waits at most for a loop that computes. It takes the interpreter
# three times a sync, and what it waits is added to every reply: with Python's 5 ms a busy stream got less done. Far
# below 1 ms the loop is interrupted so often that replies leave in small groups, which 50 connections in lock step pay.
_SWITCH_INTERVAL_S: Final = 0.001

log = logging.get_logger()


def run(config: Config, environ: MutableMapping[str, str] = os.environ) -> int:
    """Run a daemon until it is told to stop.

    Args:    environ: what a service manager says and passes is taken out of it.
    Returns: the exit code, 0.
    Raises:  StorageError, ConfigurationError: it could not start; they have an exit code.
    """
    spare_address_space()
    logging.configure(config.log_level, config.log_format, sys.stderr)
    os.umask(0o077)
    notifier = Notifier.taken_from(environ, os.getpid())
    passed = take_passed_sockets(environ, os.getpid())
    runtime_directories = {
        str(Path(each)) for each in environ.get("RUNTIME_DIRECTORY", "").split(":") if each
    }
    if notifier.watchdog_s is not None:
        # The watchdog ends a stuck daemon by SIGABRT: stderr then says where it was. Only the loop's thread: the commit
        # thread may go on while its frames are read, and then the reading itself ends by SIGSEGV.
        faulthandler.enable(2, all_threads=False)
    _make_parents(config.data_dir)
    store = WalStore(
        config.data_dir,
        segment_bytes=config.segment_bytes,
        reserve_bytes=reserve_bytes(config.low_space_bytes),
    )
    engine = recover(store, config, notifier)
    _check_clock(engine.state, config)
    _tame_collector()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(engine, store, config, notifier, passed, runtime_directories))
    store.close()
    notifier.close()
    log.info("stopped", lsn=engine.state.lsn)
    return 0


def recover(
    store: Store,
    config: Config,
    notifier: Notifier = SILENT,
    clock_s: Callable[[], float] = time.monotonic,
) -> Engine:
    """Rebuild the state from the log, and say from time to time that it goes on.

    Raises: Corruption, UnsupportedFormat, and what else reading can raise.
    """
    engine = Engine(
        State(),
        Identity(server=f"jqd {__version__}", store_id=store.public_id),
        memory_soft_bytes=config.memory_soft_bytes,
    )
    begun_s = clock_s()
    told_s = begun_s
    count = 0
    _tell_progress(notifier, "reading snapshot and log")
    gc.disable()  # nothing is garbage yet, and looking for it would double the time
    try:
        for part in store.load_snapshot():
            engine.restore(part)
            told_s = _tell_parts(notifier, engine, told_s, clock_s)
        for record in store.load():
            engine.replay(record.first_lsn, record.count, record.payload)
            count += 1
            now_s = clock_s()
            if now_s - told_s >= _PROGRESS_S:
                told_s = now_s
                _tell_progress(notifier, f"{count} records read, LSN {engine.state.lsn}")
    except ReplayFailed as error:
        raise Corruption(
            f"{config.data_dir}: a record cannot be applied: {error}; it was written by a newer jqd or by a broken "
            f"one; {WHAT_TO_DO}",
            file=config.data_dir,
            offset=0,
            lsn=error.lsn,
        ) from error
    _tell_progress(notifier, f"{count} records read, preparing to serve")
    report = store.recovery
    log.info(
        "recovered",
        data_dir=config.data_dir,
        records=report.records,
        lsn=report.last_lsn,
        jobs=sum(engine.state.counts()),
        clean=report.clean,
        snapshot_lsn=report.snapshot_lsn,
        took_ms=int((clock_s() - begun_s) * 1_000),
    )
    for damage in report.damaged_snapshots:
        log.error("snapshot_damaged", damage=damage, put_into="quarantine")
    if report.torn_bytes:
        log.warning("torn_tail_cut", bytes=report.torn_bytes, copy=report.quarantined)
    return engine


def _tell_parts(notifier: Notifier, engine: Engine, told_s: float, clock_s: Callable[[], float]) -> float:
    """Say from time to time how much of a snapshot was read. Returns when it was said last."""
    now_s = clock_s()
    if now_s - told_s < _PROGRESS_S:
        return told_s
    _tell_progress(notifier, f"{sum(engine.state.counts())} jobs of a snapshot read")
    return now_s


def _tell_progress(notifier: Notifier, words: str) -> None:
    notifier.tell(f"EXTEND_TIMEOUT_USEC={_EXTEND_TIMEOUT_US}", f"STATUS=Recovering: {words}")


def _check_clock(state: State, config: Config) -> None:
    behind_ms = state.now.wall_ms - time.time_ns() // 1_000_000
    if behind_ms > CLOCK_BACK_MS_MAX and not config.accept_clock:
        raise ConfigurationError(
            f"the clock is {behind_ms // 1_000} s before the newest record in {config.data_dir} (limit "
            f"{CLOCK_BACK_MS_MAX // 1_000} s): set the clock, or start once with --accept-clock"
        )


def _tame_collector() -> None:
    """Keep the garbage collector away from the jobs: a full pass takes 90 ms per million of them.

    What stands now is frozen. Young objects are still collected, which is bounded by their number;
    jobs and what hangs on them form no cycles, so reference counts free them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000_000)
    gc.enable()


def _make_parents(data_dir: str) -> None:
    try:
        Path(data_dir).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataDirUnusable(
            f"data directory {data_dir}: its parent cannot be made: {error.strerror}"
        ) from error


class _Status:
    """The line that `systemctl status` shows: what the daemon does, and what keeps it from doing all of it."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._doing = ""
        self._troubles: dict[str, str] = {}

    def begin(self, doing: str) -> str:
        """Return the message that says what is done from now on."""
        self._doing = doing
        return f"STATUS={'; '.join([doing, *self._troubles.values()])}"

    def trouble(self, subject: str, words: str) -> None:
        """Say what is wrong with a subject; "": nothing any more."""
        self._troubles.pop(subject, None)
        if words:
            self._troubles[subject] = words
        if self._doing:
            self._notifier.tell(self.begin(self._doing))


async def _serve(
    engine: Engine,
    store: Store,
    config: Config,
    notifier: Notifier,
    passed: Collection[socket.socket],
    runtime_directories: Collection[str],
) -> None:
    loop = asyncio.get_running_loop()
    status = _Status(notifier)
    clock = Clock(engine.state.now.engine_ms)
    driver = Driver(engine, store, config, loop, clock, _die, status.trouble)
    loop.set_exception_handler(_callback_failed)
    listeners = await open_listeners(driver.new_connection, config, passed, runtime_directories)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    driver.start(__version__)
    addresses = listeners.addresses
    log.info("ready", pid=os.getpid(), listen=addresses, epoch=engine.state.epoch, version=__version__)
    notifier.tell("READY=1", status.begin(f"Serving {', '.join(addresses)}"), must_arrive=True)
    notifier.feed_watchdog(loop)
    await stop.wait()
    connections = len(driver.connections)
    log.info("draining", connections=connections)
    notifier.tell("STOPPING=1", status.begin(f"Draining, connections left: {connections}"), must_arrive=True)
    listeners.close()
    await driver.drain()


def _callback_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG001 - asyncio's
    """A callback of the loop raised. A socket's trouble is the socket's; anything else is a broken invariant."""
    error = context.get("exception")
    if error is None or isinstance(error, OSError):
        log.warning("loop_trouble", message=context.get("message"), error=repr(error))
    else:
        _die(error)


def _die(error: BaseException) -> NoReturn:
    """End the process now: no reply may leave any more. Called in whichever thread it happened.

    What the disk did is said in one line, which names file and reason. A traceback is for what nobody foresaw.
    """
    if isinstance(error, StorageError):
        log.critical("failed", error=f"{type(error).__name__}: {error}", exit_code=error.exit_code)
        code = error.exit_code
    else:
        code = EXIT_INVARIANT_BROKEN
        log.critical("failed", error=repr(error), exit_code=code, exc_info=error)
    logging.flush()
    os._exit(code)
