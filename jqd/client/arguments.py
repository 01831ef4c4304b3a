"""A function's arguments and result as bytes, and back: msgpack, by the names and annotations of the function.

Knows:         signatures, which values can be said, what they become on the other side.
Must not know: jobs, clients, who calls the function.

    arguments   msgpack map: parameter name -> value; defaults are left out, so that they are the worker's.
                A *args parameter is a list under its name, **kwargs a map under its own. JSON is read alike:
                `jqctl submit emails '{"to": "ada"}' --task send --encoding json` calls send(to="ada")
    result      msgpack value; None is no result at all

What msgspec says is taken: numbers, str, bytes, bool, None, lists, tuples, sets, dicts, datetime, date, time,
timedelta, UUID, Decimal, Enum, dataclasses, attrs, TypedDict, NamedTuple and msgspec's Structs; paths and IP addresses as
text; and pydantic's models and URLs where the program has pydantic. A value comes back as what the annotation says: without one a UUID comes back as str, a
tuple as list. Never pickle: bytes from a queue must not choose what code runs.
"""

import inspect
from collections.abc import Callable
from hashlib import blake2b
from pathlib import PurePath
from types import GenericAlias
from typing import Any, Final, get_type_hints

import msgspec
from msgspec import UNSET, Struct

from jqd.core.model import Encoding, shorten
from jqd.errors import InvalidArgument

_POSITIONAL_ONLY: Final = inspect.Parameter.POSITIONAL_ONLY
_VAR_POSITIONAL: Final = inspect.Parameter.VAR_POSITIONAL
_VAR_KEYWORD: Final = inspect.Parameter.VAR_KEYWORD

Call = tuple[tuple[Any, ...], dict[str, Any]]


def _to_plain(value: object) -> object:
    """Say what msgspec does not know by itself.

    Raises: TypeError, which names the type.
    """
    dump = getattr(value, "model_dump", None)  # pydantic's models, by what they can do: it need not be there
    if dump is not None:
        # As Python values: a field that hides its value, as SecretStr does, is refused and not sent as stars.
        return dump(mode="python", round_trip=True)
    if _is_text(type(value)):
        return str(value)
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} cannot be sent")


def _is_text(kind: type) -> bool:
    """Tell whether str() says all of a value, and its type makes it again of that: paths, addresses, pydantic's URLs."""
    return (
        issubclass(kind, PurePath)
        or kind.__module__ == "ipaddress"
        or (kind.__module__ == "pydantic.networks" and hasattr(kind, "unicode_string"))
    )


def _from_plain(kind: type, value: object) -> object:
    """Make what msgspec does not know by itself.

    Raises: TypeError, ValueError (pydantic's is one).
    """
    validate = getattr(kind, "model_validate", None)
    if validate is not None:
        return validate(value)
    if _is_text(kind) and isinstance(value, str):
        return kind(value)
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} cannot be made from what was sent")


def pack(field: str, value: object) -> bytes:
    """Encode one value.

    Args:   field: what the caller calls it, for the message.
    Raises: InvalidArgument: it cannot be said in msgpack.
    """
    try:
        return msgspec.msgpack.encode(value, enc_hook=_to_plain)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"{field} = {shorten(value)}: {error}") from error


def unpack(field: str, data: bytes, encoding: Encoding, kind: Any) -> Any:  # noqa: ANN401 - any annotation
    """Decode one value as `kind` says; bytes and text, as other programs may have sent them, as they are.

    Raises: InvalidArgument: it is something else.
    """
    try:
        match encoding:
            case "msgpack":
                return msgspec.msgpack.decode(data, type=kind, dec_hook=_from_plain)
            case "json":
                return msgspec.json.decode(data, type=kind, dec_hook=_from_plain)
            case "text":
                return data.decode()
            case _:
                return data
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"{field} = {len(data)} bytes of {encoding}: {error}") from error


class Arguments:
    """What a function takes and returns.

    Args:   function: its annotations are looked up when they are first needed, on the worker.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._signature = inspect.signature(function)
        self._fields: type[Struct] | None = None
        self._result: Any = UNSET

    # --- what is sent -------------------------------------------------------------------------

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Encode the arguments of one call.

        Raises: TypeError, as the call would: they do not fit. InvalidArgument: one cannot be sent.
        """
        given = self._signature.bind(*args, **kwargs).arguments
        try:
            return msgspec.msgpack.encode(given, enc_hook=_to_plain)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
            for name, value in given.items():
                pack(name, value)  # it names the one
            raise

    def digest(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return 32 hexadecimal digits that are the same for the same call, in every process of every machine.

        However the arguments are said: by position or name, with a default or without it, a set or a dict in whatever order.

        Raises: as pack(), which is asked first.
        """
        call = self._signature.bind(*args, **kwargs)
        call.apply_defaults()
        said = msgspec.msgpack.encode(call.arguments, enc_hook=_to_plain, order="deterministic")
        return blake2b(said, digest_size=16).hexdigest()

    # --- what arrives -------------------------------------------------------------------------

    def unpack(self, data: bytes, encoding: Encoding) -> Call:
        """Decode the arguments of a call.

        Raises: InvalidArgument: they are not what the function takes.
        """
        if encoding not in ("msgpack", "json"):
            raise InvalidArgument(
                f"payload = {len(data)} bytes of {encoding}: arguments are a map, in msgpack or JSON"
            )
        given = unpack("arguments", data, encoding, self._struct())
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            value = getattr(given, name)
            if parameter.kind is _VAR_POSITIONAL and value is not UNSET:
                if value and kwargs:  # f(a, *rest): what stands before *rest has to be positional too
                    args += kwargs.values()
                    kwargs = {}
                args += value
            elif parameter.kind is _VAR_KEYWORD and value is not UNSET:
                kwargs.update(value)
            elif value is not UNSET and parameter.kind is _POSITIONAL_ONLY:
                args.append(value)
            elif value is not UNSET:
                kwargs[name] = value
        return tuple(args), kwargs

    def _struct(self) -> type[Struct]:
        if self._fields is None:
            hints = self._hints()
            fields: list[Any] = []
            for name, parameter in self._signature.parameters.items():
                kind: Any = hints.get(name, Any)
                if parameter.kind is _VAR_POSITIONAL:
                    fields.append((name, GenericAlias(list, (kind,)), UNSET))
                elif parameter.kind is _VAR_KEYWORD:
                    fields.append((name, GenericAlias(dict, (str, kind)), UNSET))
                elif parameter.default is inspect.Parameter.empty:
                    fields.append((name, kind))
                else:
                    fields.append((name, kind, UNSET))
            self._fields = msgspec.defstruct(
                self._function.__name__, fields, kw_only=True, forbid_unknown_fields=True
            )
        return self._fields

    def result(self, data: bytes | None, encoding: Encoding) -> Any:  # noqa: ANN401 - what the function returns
        """Decode what the function returned; no bytes are None.

        Raises: InvalidArgument: it is not what the function says that it returns.
        """
        if data is None:
            return None
        if self._result is UNSET:
            self._result = self._hints().get("return", Any)
        return unpack("result", data, encoding, self._result)

    def _hints(self) -> dict[str, Any]:
        try:
            return get_type_hints(self._function, include_extras=True)
        except (NameError, AttributeError, TypeError) as error:
            name = self._function.__qualname__
            raise InvalidArgument(
                f"the annotations of {name} cannot be looked up: {error} (names that only type checkers see?)"
            ) from error
