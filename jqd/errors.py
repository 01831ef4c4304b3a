"""Every failure that a user can meet, with its stable code.

Knows:         the families of failure, the word each has on the wire, whether a retry can help.
Must not know: who raises it, how it is sent, what a job is.

    JqdError            code, message, retryable, retry_after_ms, details; str() is one line
      RequestError      the caller must change something
        AuthError       who asks is unknown, or may not
        ProtocolError   what was said does not parse (see `fatal`)
      UnavailableError  the same request may succeed later
      StoreRolledBack   what the server had acknowledged is gone; raised by clients only
      StorageError      never sent as such: the daemon exits with `exit_code`
      JobFailed, WaitTimeout    what waiting for a job came to

Families end in Error, leaves say what happened. A code, once released, keeps its meaning for ever
(protocol.md "Errors" lists them in the same words; a test compares). "Nothing to lease" is a reply,
not an error.
"""

from collections.abc import Mapping
from typing import ClassVar

# Exit codes of the daemon, after sysexits.h where it has a word for the case.
EXIT_DATA_DAMAGED = 65
EXIT_INVARIANT_BROKEN = 70
EXIT_IO_ERROR = 74
EXIT_DIRECTORY_LOCKED = 75
EXIT_CONFIGURATION = 78


class JqdError(Exception):
    """A failure with a stable code.

    Args:
        message: one line that names the offending value and the limit that it broke.
        details: small, machine-readable facts for the caller; only str, int and bool values.
        retry_after_ms: when a retry is worth trying, where the server can tell.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        details: Mapping[str, str | int | bool] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, str | int | bool] = dict(details or {})
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return self.message


class Internal(JqdError):
    """The daemon failed in a way that it does not understand; its log has the whole story."""


# --- the caller must change something ---------------------------------------------------------


class RequestError(JqdError):
    """The request cannot succeed as it stands."""


class InvalidArgument(RequestError):
    """A field is missing, unknown, of the wrong type, or outside its range."""

    code = "invalid_argument"


class PayloadTooLarge(RequestError):
    """A payload, result or frame is over its limit in bytes."""

    code = "payload_too_large"


class JobNotFound(RequestError):
    """No such job: never submitted, purged, or forgotten by retention."""

    code = "job_not_found"


class QueueNotFound(RequestError):
    """No queue of this name has a job: a queue is there from its first job until its last is forgotten."""

    code = "queue_not_found"


class KeyNotFound(RequestError):
    """No API key has this id."""

    code = "key_not_found"


class LeaseLost(RequestError):
    """The token is not the job's current one, or its deadline has passed."""

    code = "lease_lost"


class WrongState(RequestError):
    """The job exists, but its state does not allow this."""

    code = "wrong_state"


class IdempotencyConflict(RequestError):
    """The idempotency key was used before with other content."""

    code = "idempotency_conflict"


class Duplicate(RequestError):
    """A live job has this dedupe key, and the caller asked to be refused."""

    code = "duplicate"


class QuotaExceeded(RequestError):
    """The tenant has used up what it may hold."""

    code = "quota_exceeded"


class PositionLost(RequestError):
    """What the caller refers to lies before what the server still remembers."""

    code = "position_lost"


class AuthError(RequestError):
    """The caller is unknown or may not do this."""


class Unauthenticated(AuthError):
    """No key, or one that does not exist, expired or was revoked."""

    code = "unauthenticated"


class PermissionDenied(AuthError):
    """The key is good but lacks the scope or belongs to another tenant."""

    code = "permission_denied"


class WorkerNotFound(RequestError):
    """No worker with this id or label is registered."""

    code = "worker_not_found"


class ProtocolError(RequestError):
    """What arrived is not the protocol. `fatal` says whether the connection can go on."""

    fatal: ClassVar[bool] = True


class BadFrame(ProtocolError):
    """The bytes are not a frame, or the frame is not a request: the stream is out of step."""

    code = "bad_frame"


class UnknownCommand(ProtocolError):
    """No such verb. The frame was whole, so the connection goes on."""

    code = "unknown_command"
    fatal = False


class VersionMismatch(ProtocolError):
    """Client and server share no protocol version."""

    code = "version_mismatch"


class Moved(RequestError):
    """Another server owns this job."""

    code = "moved"


# --- try again later --------------------------------------------------------------------------


class UnavailableError(JqdError):
    """Nothing is wrong with the request; the server cannot take it now."""

    retryable = True


class Busy(UnavailableError):
    """The queue of unsynced records is full: the disk is slower than the clients."""

    code = "busy"


class Draining(UnavailableError):
    """The server is shutting down."""

    code = "draining"


class Overloaded(UnavailableError):
    """Memory is short, or a table in it is full."""

    code = "overloaded"


class RateLimited(UnavailableError):
    """More requests than the limit of this key or tenant allows."""

    code = "rate_limited"


class QueueFull(UnavailableError):
    """The queue holds as many jobs as it may."""

    code = "queue_full"


class QueuePaused(UnavailableError):
    """The queue hands out no jobs until somebody resumes it."""

    code = "queue_paused"


class StorageFull(UnavailableError):
    """The disk is nearly full: what is there can be finished, nothing new is taken."""

    code = "storage_full"


class ConnectionLost(UnavailableError):
    """The connection ended before the reply came. Raised by clients only.

    `outcome_unknown` tells whether the request may have been carried out.
    """

    code = "connection_lost"

    def __init__(self, message: str, *, outcome_unknown: bool) -> None:
        super().__init__(message, details={"outcome_unknown": outcome_unknown})
        self.outcome_unknown = outcome_unknown


class ClientClosed(ConnectionLost):
    """This client was closed, by this program: nobody will make its connection again."""

    retryable = False


class RequestTimeout(UnavailableError):
    """No reply within the caller's time: the outcome is unknown. Raised by clients only."""

    code = "request_timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message, details={"outcome_unknown": True})
        self.outcome_unknown = True


# --- the server is not what it was -------------------------------------------------------------


class StoreRolledBack(JqdError):
    """The server's log lies behind what it had acknowledged, or another store answers. Raised by clients only.

    An older backup was restored, or acknowledged work was lost. Jobs that were submitted may be missing, finished ones
    be there again, tokens of leases be void. Every request that was under way ends in it, once; what is asked
    afterwards goes to the store as it is now. `outcome_unknown` tells whether the request may have been carried out.

    details: store_id, epoch, lsn: what answers now. seen_store_id, seen_epoch, seen_lsn: what had been heard.
    """

    code = "store_rolled_back"

    def __init__(
        self, message: str, *, outcome_unknown: bool, details: Mapping[str, str | int | bool] | None = None
    ) -> None:
        super().__init__(message, details={**(details or {}), "outcome_unknown": outcome_unknown})
        self.outcome_unknown = outcome_unknown


# --- what waiting for a job comes to: raised by clients only ----------------------------------


class JobFailed(JqdError):
    """The job that somebody waited for ended without success, and nothing will be tried again.

    Args:
        state: `dead`, `cancelled` or `expired`.
        reason: why it is dead, see protocol.md "Life cycle"; else None.
        error: the text of its last attempt.
    """

    code = "job_failed"

    def __init__(self, job_id: int, state: str, reason: str | None, error: str) -> None:
        headline = error.partition("\n")[0]
        super().__init__(
            f"job {job_id} is {state}{f', reason {reason}' if reason else ''}{f': {headline}' if headline else ''}",
            details={"job_id": job_id, "state": state},
        )
        self.job_id = job_id
        self.state = state
        self.reason = reason
        self.error = error


class ResultExpired(JqdError):
    """The job that somebody waited for is done, but the time of its result is over: it is not kept any more."""

    code = "result_expired"


class WaitTimeout(JqdError):
    """The job did not end within the time that the caller gave it. It goes on."""

    code = "wait_timeout"
    retryable = True


# --- storage: the daemon exits ----------------------------------------------------------------


class StorageError(JqdError):
    """The log cannot be read or written. Never sent to a client: the process ends."""

    exit_code: ClassVar[int] = EXIT_IO_ERROR


class DataDirLocked(StorageError):
    """Another daemon holds the data directory."""

    exit_code = EXIT_DIRECTORY_LOCKED


class DataDirUnusable(StorageError):
    """The data directory cannot be made, entered or written."""

    exit_code = EXIT_CONFIGURATION


class DiskFull(StorageError):
    """No space is left for what must be written."""


class WriteFailed(StorageError):
    """A write or sync failed. What the disk holds is known only after a restart."""


class Corruption(StorageError):
    """Bytes that were once good are not any more.

    Args:
        file: path of the damaged file.
        offset: first byte, from 0, that cannot be trusted.
        lsn: first LSN that is lost, as far as it is known.
    """

    exit_code = EXIT_DATA_DAMAGED

    def __init__(self, message: str, *, file: str, offset: int, lsn: int | None = None) -> None:
        super().__init__(message)
        self.file = file
        self.offset = offset
        self.lsn = lsn


class UnsupportedFormat(StorageError):
    """The files were written by a newer jqd, or are not jqd's."""

    exit_code = EXIT_DATA_DAMAGED


class ConfigurationError(JqdError):
    """A setting is unknown, malformed or impossible. The daemon exits 78."""

    code = "configuration"
    exit_code: ClassVar[int] = EXIT_CONFIGURATION


def _leaves(family: type[JqdError]) -> list[type[JqdError]]:
    direct = family.__subclasses__()
    return [family, *(leaf for child in direct for leaf in _leaves(child))]


# Codes that a server may send -> the exception that a client raises for it.
WIRE_ERRORS: dict[str, type[JqdError]] = {
    error.code: error
    for family in (RequestError, UnavailableError)
    for error in _leaves(family)
    if "code" in vars(error) and error not in (ConnectionLost, RequestTimeout)
} | {Internal.code: Internal}
