"""What a client does that is not about waiting: who it is, its limits, what a failure is called.

Knows:         the session, how long an attempt may take, the exception for each way not to be answered.
Must not know: how anybody waits: sockets, asyncio, threads and locks belong to the shells.
"""

import os
from collections.abc import Callable
from threading import Lock
from typing import Final, Generic, TypeVar

from msgspec import Struct, structs

from jqd import __version__
from jqd.client.retry import Backoff
from jqd.client.values import Address, to_address
from jqd.core.commands import (
    PROTOCOL_MINOR,
    PROTOCOL_VERSION,
    CancelRequested,
    Hello,
    Leased,
    Release,
    to_ranges,
)
from jqd.core.model import ANSWERS_PER_SESSION_MAX, SESSION_BYTES
from jqd.errors import BadFrame, ClientClosed, ConnectionLost, JqdError, PayloadTooLarge, RequestTimeout
from jqd.protocol.connection import Request, Session

L = TypeVar("L")

# Half of the answers that the server remembers: what the other connections of this client ask
# meanwhile cannot push a request of this one out of its memory.
IN_FLIGHT_MAX: Final = ANSWERS_PER_SESSION_MAX // 2
# Idle lease connections that are kept for the next waiting lease.
IDLE_LINKS_MAX: Final = 8
# A TCP connect and hello; a daemon in recovery does not listen yet, so this is not its time.
CONNECT_S: Final = 5.0
# A request that had this long, and not a byte came meanwhile: the connection is taken for dead.
SILENT_S: Final = 5.0


class Shared(Struct, Generic[L], eq=False, kw_only=True):
    """What all links of one client share.

    unclaimed: gets each reply that nobody waits for any more.
    reached:   the server has welcomed one of them: from then on it is worth waiting for.
    links:     those that have not ended.
    stays:     a main connection that is lost is made again at once, whether or not somebody waits for an answer.
    """

    url: str
    address: Address
    session: Session
    backoff: Backoff
    unclaimed: Callable[[Struct | JqdError], None]
    reached: bool = False
    links: set[L] = set()
    stays: bool = False

    def retry_ms(self, error: JqdError, failures: int, passed_s: float) -> int | None:
        """Return how long to wait after a failed attempt, or None: give up.

        Args:
            error: why it failed.  failures: in a row, from 1.  passed_s: since the connection was lost.
        """
        if not (self.reached and error.retryable):
            return None
        import random  # it loads hashes and more, and most clients never lose a connection

        return self.backoff.wait_ms(failures, round(passed_s * 1_000), random.random())  # noqa: S311

    def unreachable(self, failure: JqdError | OSError) -> JqdError:
        """Return the exception for an attempt that ended in `failure`: TimeoutError is one too."""
        if isinstance(failure, TimeoutError) and not failure.errno:
            return self._lost(f"{self.url} does not answer within {CONNECT_S:g} s")
        if isinstance(failure, OSError):
            return self._lost(f"cannot reach {self.url}: {_reason(failure)}")
        if isinstance(failure, BadFrame | PayloadTooLarge):  # also of bytes that are no frames
            return self._lost(f"{self.url} does not speak jqd: {failure}")
        return failure

    def too_late(self, request: Request, wait_s: float) -> RequestTimeout | ConnectionLost:
        """Return the exception for a request that was not answered within `wait_s`."""
        verb = request.kind.verb
        if request.sends:
            return RequestTimeout(f"{verb}: no reply from {self.url} within {wait_s:g} s (outcome unknown)")
        return self._lost(f"{verb}: {self.url} could not take it within {wait_s:g} s (nothing was changed)")

    @staticmethod
    def _lost(message: str) -> ConnectionLost:
        return ConnectionLost(message, outcome_unknown=False)


def _reason(failure: OSError) -> str:
    """Say why a connect failed as the system says it, without an account of the call."""
    if failure.errno and failure.errno > 0:
        return os.strerror(failure.errno)
    return failure.strerror or str(failure)  # a name that is not found has a number of its own, below 0


def is_silent(wait_s: float, deadline: float, heard_at: float) -> bool:
    """Tell whether not a byte came for long before a request's deadline: the other end may be gone without
    a word, and what others wait for is better sent again over a new connection.
    """
    return wait_s >= SILENT_S and heard_at <= deadline - wait_s


def make_shared(
    kind: type[L],  # noqa: ARG001 - names L
    url: str,
    worker: str,
    backoff: Backoff | None,
    unclaimed: Callable[[Struct | JqdError], None],
    on_cancel: Callable[[int, int], None] | None = None,
) -> Shared[L]:
    """Return what the links of a new client share: a session of its own among it.

    Raises: InvalidArgument: url.
    """
    hello = Hello(
        version=PROTOCOL_VERSION,
        minor=PROTOCOL_MINOR,
        client=f"jqd-python/{__version__}",
        worker=worker,
        session=os.urandom(SESSION_BYTES),
    )
    return Shared(
        url=url,
        address=to_address(url),
        session=Session(hello, on_cancel),
        backoff=backoff or Backoff(),
        unclaimed=unclaimed,
    )


def renewed(shared: Shared[L]) -> Shared[L]:
    """Return what the links of a client share in a fork: a session of its own, and no links yet.

    What the old one still hears of is the parent's: nothing is given back from here.
    """
    shared.unclaimed, unclaimed = _ignore, shared.unclaimed
    hello = structs.replace(shared.session.hello, session=os.urandom(SESSION_BYTES))
    session = Session(hello, shared.session.on_cancel)
    return structs.replace(shared, session=session, unclaimed=unclaimed, links=set())


def hold_by_connection(
    shared: Shared[L],
    on_cancel: Callable[[int, int], None],
    on_order: Callable[[str], None],
    on_greeted: Callable[[], None],
) -> Session:
    """Have the server end what this client holds soon after its process is gone: see protocol.md "Connections".

    Before its first request.

    Args:    on_cancel, on_order, on_greeted: see Session; called in the thread of whichever client reads it.
    Returns: the session, for another client of this process that is to be a part of it.
    """
    shared.stays = True
    hello = structs.replace(shared.session.hello, on_disconnect="release")
    shared.session = _SessionOfThreads(hello, on_cancel, on_order, on_greeted)
    return shared.session


class _SessionOfThreads(Session):
    """A session whose connections are of clients in more than one thread."""

    __slots__ = ("_lock",)

    def __init__(
        self,
        hello: Hello,
        on_cancel: Callable[[int, int], None],
        on_order: Callable[[str], None],
        on_greeted: Callable[[], None],
    ) -> None:
        super().__init__(hello, on_cancel, on_order, on_greeted)
        self._lock = Lock()

    def cancel_requested(self, event: CancelRequested) -> None:
        with self._lock:
            super().cancel_requested(event)

    def next_id(self) -> int:
        with self._lock:
            return super().next_id()


def _ignore(_: Struct | JqdError) -> None:
    pass


def give_back(reply: Struct | JqdError) -> Release | None:
    """Return what to tell the server about a reply that nobody waits for: leased jobs go back to the queue."""
    if isinstance(reply, Leased) and reply.jobs:
        return Release(items=[(reply.token, to_ranges([job.job_id for job in reply.jobs]))])
    return None


def closed_client() -> ClientClosed:
    """Return the exception for a request to a client that was closed."""
    return ClientClosed("the client is closed", outcome_unknown=False)
