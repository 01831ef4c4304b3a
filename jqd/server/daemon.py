"""The daemon from start to exit: recover, listen, serve, drain.

Knows:         the order in which things start and stop, and which failure is which exit code.
Must not know: the rules of jobs, the bytes of the log.

    start  lock and read the log -> check the clock -> listen -> say `ready`
    stop   SIGTERM or SIGINT: no new connection or request; replies out; log sealed and closed; exit 0
    fail   exit at once, without another reply: 74 for the disk, 70 for a broken invariant
"""

import asyncio
import gc
import os
import signal
import socket
import stat
import sys
import time
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
from jqd.storage.base import Store
from jqd.storage.wal import WalStore

# A clock that lies further back than this was set wrong, or the store is a copy from the future.
CLOCK_BACK_MS_MAX: Final = DAY_MS
# Connections that the kernel holds until they are accepted.
_BACKLOG: Final = 1_024

# A process that serves a socket answers at once, or its backlog is full and it hangs: it is served all the same.
_PROBE_S: Final = 1.0

log = logging.get_logger()


def run(config: Config) -> int:
    """Run a daemon until it is told to stop.

    Returns: the exit code, 0.
    Raises:  StorageError, ConfigurationError: it could not start; they have an exit code.
    """
    logging.configure(config.log_level, config.log_format, sys.stderr)
    os.umask(0o077)
    _make_parents(config.data_dir)
    store = WalStore(config.data_dir, segment_bytes=config.segment_bytes)
    engine = recover(store, config)
    _check_clock(engine.state, config)
    _tame_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(engine, store, config))
    if config.unix is not None:
        Path(config.unix).unlink(missing_ok=True)
    store.close()
    log.info("stopped", lsn=engine.state.lsn)
    return 0


def recover(store: Store, config: Config) -> Engine:
    """Rebuild the state from the log.

    Raises: Corruption, UnsupportedFormat, and what else reading can raise.
    """
    engine = Engine(State(), Identity(server=f"jqd {__version__}", store_id=store.public_id))
    begun_s = time.monotonic()
    gc.disable()  # nothing is garbage yet, and looking for it would double the time
    try:
        for record in store.load():
            engine.replay(record.first_lsn, record.count, record.payload)
    except ReplayFailed as error:
        raise Corruption(
            f"{config.data_dir}: a record cannot be applied: {error}; it was written by a newer jqd or by a broken "
            f"one; keep a copy of the directory and restore a backup",
            file=config.data_dir,
            offset=0,
            lsn=error.lsn,
        ) from error
    report = store.recovery
    log.info(
        "recovered",
        data_dir=config.data_dir,
        records=report.records,
        lsn=report.last_lsn,
        jobs=sum(engine.state.counts()),
        clean=report.clean,
        took_ms=int((time.monotonic() - begun_s) * 1_000),
    )
    if report.torn_bytes:
        log.warning("torn_tail_cut", bytes=report.torn_bytes, copy=report.quarantined)
    return engine


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


async def _serve(engine: Engine, store: Store, config: Config) -> None:
    loop = asyncio.get_running_loop()
    driver = Driver(engine, store, config, loop, Clock(engine.state.now.engine_ms), _die)
    loop.set_exception_handler(_callback_failed)
    servers, addresses = await _listen(driver, config, loop)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    driver.start(__version__)
    log.info("ready", pid=os.getpid(), listen=addresses, epoch=engine.state.epoch, version=__version__)
    await stop.wait()
    log.info("draining", connections=len(driver.connections))
    for server in servers:
        server.close()
    await driver.drain()


async def _listen(
    driver: Driver, config: Config, loop: asyncio.AbstractEventLoop
) -> tuple[list[asyncio.AbstractServer], list[str]]:
    """Open the listeners. Raises: ConfigurationError."""
    servers: list[asyncio.AbstractServer] = []
    addresses: list[str] = []
    if config.listen is not None:
        host, port = config.listen
        try:
            server = await loop.create_server(driver.new_connection, host, port, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigurationError(f"listen = {host}:{port}: {error.strerror or error}") from error
        servers.append(server)
        for one in server.sockets:
            host, port = one.getsockname()[:2]
            addresses.append(f"jqd://[{host}]:{port}" if ":" in host else f"jqd://{host}:{port}")
    if config.unix is not None:
        _remove_stale_socket(config.unix)
        try:
            servers.append(
                await loop.create_unix_server(driver.new_connection, config.unix, backlog=_BACKLOG)
            )
        except OSError as error:
            raise ConfigurationError(f"unix = {config.unix}: {error.strerror or error}") from error
        addresses.append(f"unix://{config.unix}")
    return servers, addresses


def _remove_stale_socket(path: str) -> None:
    """Remove what a killed daemon left behind; leave alone what somebody still serves, or is no socket."""
    try:
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            raise ConfigurationError(f"unix = {path}: there is a file of that name that is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_S)
            probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        Path(path).unlink()
        return
    except OSError as error:
        raise ConfigurationError(f"unix = {path}: {error.strerror or error}") from error
    raise ConfigurationError(f"unix = {path}: another process serves this socket")


def _callback_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG001 - asyncio's
    """A callback of the loop raised. A socket's trouble is the socket's; anything else is a broken invariant."""
    error = context.get("exception")
    if error is None or isinstance(error, OSError):
        log.warning("loop_trouble", message=context.get("message"), error=repr(error))
    else:
        _die(error)


def _die(error: BaseException) -> NoReturn:
    """End the process now: no reply may leave any more. Called in whichever thread it happened."""
    code = error.exit_code if isinstance(error, StorageError) else EXIT_INVARIANT_BROKEN
    log.critical("failed", error=repr(error), exit_code=code, exc_info=error)
    logging.flush()
    os._exit(code)
