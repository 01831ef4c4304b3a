"""What is inside a frame: requests, replies and events as msgpack arrays.

Knows:         the shape of each message, how to name what is wrong with one.
Must not know: sockets, what a command does, who waits for a reply.

    request  [request_id, verb, args]         request_id 1 to 2^63 - 1, verb str, args map
    reply    [request_id, status, lsn, body]  status "ok" or an error code, body map
    event    [0, name, lsn, body]             from the server, asked for by nobody

A request is decoded in two steps: the envelope, then its args into the one Struct of its verb. So
a message with a bad field still has an id that the error can be sent to. Typed decoding also keeps
hostile input small: a generic decode of nested empty maps costs 72 bytes of memory a byte.
Source: protocol.md "Messages".
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from jqd.core.commands import COMMANDS, Command, Hello, Submit, check_version
from jqd.core.model import shorten
from jqd.errors import WIRE_ERRORS, BadFrame, InvalidArgument, JqdError, UnknownCommand

REQUEST_ID_MAX: Final = (1 << 63) - 1
OK: Final = "ok"
# What decoding hostile bytes can raise: text that is not UTF-8 has an exception of its own.
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# Arguments up to this size are decoded once more to show the value that was refused.
_EXPLAINED_BYTES_MAX: Final = 4 << 10
# A message is for one line of a log; its beginning says what, its end where.
_MESSAGE_CHARS_MAX: Final = 400
# The decoder's words for types -> protocol.md's.
_TYPE_WORDS: Final = {"object": "map", "array": "list", "bytes": "bin", "null": "nil"}

RequestId = Annotated[int, Meta(ge=1, le=REQUEST_ID_MAX)]


class Request(Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """The envelope of a request; args stay encoded until the verb is known."""

    request_id: RequestId
    verb: Annotated[str, Meta(max_length=64)]
    args: Raw


class SubmitRequest(Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """A whole request whose verb is submit; see decode_submits()."""

    request_id: RequestId
    verb: Literal["submit"]
    args: Submit


class ReceivedReply(Struct, array_like=True, gc=False):
    """A reply, or with request_id 0 an event, on its way in. Longer arrays are allowed: newer servers."""

    request_id: int
    status: str
    lsn: int
    body: Raw


class ErrorBody(Struct, gc=False):
    """The body of a reply whose status is not "ok"."""

    message: str
    retryable: bool = False
    retry_after_ms: int | None = None
    details: dict[str, str | int | bool] = {}


_encoder: Final = msgspec.msgpack.Encoder()
_request_decoder: Final = msgspec.msgpack.Decoder(Request)
_submit_decoder: Final = msgspec.msgpack.Decoder(SubmitRequest)
_reply_decoder: Final = msgspec.msgpack.Decoder(ReceivedReply)
_error_decoder: Final = msgspec.msgpack.Decoder(ErrorBody)
# Made when the first request of its kind comes: no client needs one.
_args_decoders: Final[dict[str, msgspec.msgpack.Decoder[Any]]] = {}
_body_decoders: Final[dict[type[Struct], msgspec.msgpack.Decoder[Any]]] = {
    command.reply: msgspec.msgpack.Decoder(command.reply) for command in COMMANDS.values()
}

encode = _encoder.encode


# --- server's side ----------------------------------------------------------------------------


def decode_request(body: memoryview | bytes) -> Request:
    """Decode a request's envelope.

    Raises: BadFrame: not msgpack, not a request, or nested too deeply to look at.
    """
    try:
        return _request_decoder.decode(body)
    except _UNDECODABLE as error:
        raise BadFrame(
            f"frame of {len(body)} bytes is no request [request_id, verb, args]: {error}"
        ) from None


def decode_command(request: Request) -> Command[Any]:
    """Decode a request's arguments into the Struct of its verb.

    Raises: UnknownCommand, VersionMismatch (hello), InvalidArgument (naming the field, its value and the limit).
    """
    decoder = _args_decoders.get(request.verb)
    if decoder is None:
        kind = COMMANDS.get(request.verb)
        if kind is None:
            raise UnknownCommand(f"verb = {shorten(request.verb)}: known are {' '.join(COMMANDS)}")
        decoder = _args_decoders[request.verb] = msgspec.msgpack.Decoder(kind)
    try:
        command: Command[Any] = decoder.decode(request.args)
    except _UNDECODABLE as error:
        if request.verb == Hello.verb:
            _check_version(request.args)
        raise InvalidArgument(f"{request.verb}: {_explain(error, request.args)}") from None
    return command


def decode_submits(
    frames: Iterable[bytes | memoryview], run: list[SubmitRequest]
) -> bytes | memoryview | None:
    """Add the requests of frames to `run`, each decoded in one step, as long as they are good submits.

    What follows a submit mostly is another one.

    Returns: the first frame that is something else, or whose fault is for the two steps to name;
             None: there was none.
    Raises:  what cutting the frames raises; `run` has those before it.
    """
    decode = _submit_decoder.decode
    for body in frames:
        try:
            run.append(decode(body))
        except _UNDECODABLE:
            return body
    return None


class _AnyHello(Struct, gc=False):
    """What every version of hello says."""

    version: int


def _check_version(args: Raw) -> None:
    """Tell a client of another version what is wrong, rather than that its new field is unknown.

    Raises: VersionMismatch.
    """
    try:
        version = msgspec.msgpack.decode(args, type=_AnyHello).version
    except _UNDECODABLE:
        return
    check_version(version)


def _explain(error: Exception, args: Raw) -> str:
    """Turn "Expected `int` <= 5 - at `$.priority`" into "priority = 7: expected `int` <= 5"."""
    what, _, path = _one_line(str(error)).partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    what = what[:1].lower() + what[1:]
    for theirs, ours in _TYPE_WORDS.items():
        what = what.replace(f"`{theirs}`", f"`{ours}`")
    if not path:
        return what
    return f"{path}{_value_at(path, args)}: {what}"


def _one_line(text: str) -> str:
    """Make what the decoder says fit to be shown: it quotes a client's field names and values as they came."""
    if len(text) > _MESSAGE_CHARS_MAX:
        text = f"{text[: _MESSAGE_CHARS_MAX // 2]} ... {text[-_MESSAGE_CHARS_MAX // 2 :]}"
    return text if text.isprintable() else ascii(text)[1:-1]


def _value_at(path: str, args: Raw) -> str:
    if len(memoryview(args)) > _EXPLAINED_BYTES_MAX:
        return ""
    try:
        value: Any = msgspec.msgpack.decode(args)
    except _UNDECODABLE:
        return ""  # typed decoding stopped before what is broken elsewhere in it
    for step in path.replace("[", ".[").split("."):
        match value:
            case dict() if step in value:
                value = value[step]
            case list() if step.startswith("[") and step[1:-1].isdigit():
                value = value[int(step[1:-1])]
            case _:
                return ""
    if isinstance(value, msgspec.msgpack.Ext):
        return f" = ext {value.code}"
    return f" = {shorten(value)}"


def encode_reply(request_id: int, lsn: int, body: Struct | Raw) -> bytes:
    """Encode the reply to a request that was carried out. A body given as Raw was encoded before."""
    return encode((request_id, OK, lsn, body))


def encode_event(name: str, lsn: int, body: Struct) -> bytes:
    """Encode what the server says unasked."""
    return encode((0, name, lsn, body))


def encode_error(request_id: int, lsn: int, error: JqdError) -> bytes:
    """Encode the reply to a request that was refused; request_id 0: to bytes that are no request."""
    body = ErrorBody(error.message, error.retryable, error.retry_after_ms, error.details)
    return encode((request_id, error.code, lsn, body))


# --- client's side ----------------------------------------------------------------------------


def encode_request(request_id: int, command: Command[Any]) -> bytes:
    """Encode a request; fields at their default are left out."""
    return _encoder.encode((request_id, command.verb, command))


def decode_reply(body: memoryview | bytes) -> ReceivedReply:
    """Decode a reply's envelope.

    Raises: BadFrame.
    """
    try:
        return _reply_decoder.decode(body)
    except _UNDECODABLE as error:
        raise BadFrame(
            f"frame of {len(body)} bytes is no reply [request_id, status, lsn, body]: {error}"
        ) from None


E = TypeVar("E", bound=Struct)


def decode_event(event: ReceivedReply, kind: type[E]) -> E:
    """Decode the body of an event.

    Raises: BadFrame.
    """
    try:
        return msgspec.msgpack.decode(event.body, type=kind)
    except _UNDECODABLE as error:
        raise BadFrame(f"event {shorten(event.status)} cannot be read: {error}") from None


def decode_body(reply: ReceivedReply, expected: type[Struct]) -> Any:  # noqa: ANN401 - the Struct given
    """Decode the body of a reply into `expected`, or into the error that its status names.

    Returns: the Struct, or a JqdError (returned, not raised: whose request it was is not known here).
    Raises:  BadFrame.
    """
    try:
        if reply.status == OK:
            return _body_decoders[expected].decode(reply.body)
        body = _error_decoder.decode(reply.body)
    except _UNDECODABLE as error:
        raise BadFrame(f"body of reply {reply.request_id}: {error}") from None
    kind = WIRE_ERRORS.get(reply.status)
    if kind is None:  # a newer server's code
        return JqdError(f"{reply.status}: {body.message}", details=body.details)
    return kind(body.message, details=body.details, retry_after_ms=body.retry_after_ms)
