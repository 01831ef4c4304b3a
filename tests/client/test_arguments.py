"""Arguments and results over bytes: what goes in comes out as the annotation says, and what cannot is refused by name."""

import dataclasses
import enum
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jqd.client.arguments import Arguments, pack, unpack
from jqd.errors import InvalidArgument


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    when: datetime | None = None


class Order(msgspec.Struct):
    id: UUID
    lines: list[Point] = []


class Pair(NamedTuple):
    a: int
    b: str


class Options(TypedDict, total=False):
    retries: int


NOW = datetime(2030, 1, 31, 8, 0, 0, 123456, tzinfo=UTC)
ID = UUID(int=5)


def there_and_back(function: Any, *args: Any, **kwargs: Any) -> Any:
    arguments = Arguments(function)
    return arguments.unpack(arguments.pack(args, kwargs), "msgpack")


VALUES = [
    (int, 2**64 - 1),
    (float, -0.5),
    (str, "ä\0"),
    (bytes, b"\xff\0"),
    (bool, True),
    (type(None), None),
    (datetime, NOW),
    (datetime, datetime(2030, 1, 31, 8, 0, 0, 5)),  # noqa: DTZ001 - one without a zone too
    (date, date(2030, 1, 31)),
    (timedelta, timedelta(days=1, microseconds=5)),
    (UUID, ID),
    (Decimal, Decimal("0.10")),
    (Colour, Colour.RED),
    (Point, Point(1, NOW)),
    (Order, Order(ID, [Point(1)])),
    (Pair, Pair(1, "x")),
    (Options, {"retries": 3}),
    (list[Point], [Point(1)]),
    (tuple[int, str], (1, "x")),
    (set[int], {1, 2}),
    (dict[str, Decimal], {"a": Decimal(1)}),
    (Point | None, None),
    (int | str, "x"),
]


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=[f"{kind}-{value}" for kind, value in VALUES])
def test_a_value_comes_back_as_its_annotation_says(kind, value):
    def function(it, other=1): ...

    function.__annotations__["it"] = kind
    assert there_and_back(function, value) == ((), {"it": value})
    assert unpack("result", pack("result", value), "msgpack", kind) == value


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_like)
def test_without_an_annotation_what_msgpack_can_say_comes_back_as_it_is(value):
    def function(it): ...

    assert there_and_back(function, value) == ((), {"it": value})


def every_kind(a: int, /, b: int, *rest: int, c: int = 3, **more: Decimal) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1, 2), {}),
        ((1,), {"b": 2}),
        ((1, 2, 3, 4), {"c": 5, "d": Decimal("1.5")}),
        ((1, 2), {"c": 9, "e": Decimal(0)}),
    ],
)
def test_every_kind_of_parameter_arrives_where_it_was_meant(args, kwargs):
    seen: list[Any] = []

    def function(a: int, /, b: int, *rest: int, c: int = 3, **more: Decimal) -> None:
        seen.append((a, b, rest, c, more))

    function(*args, **kwargs)
    again_args, again_kwargs = there_and_back(every_kind, *args, **kwargs)
    function(*again_args, **again_kwargs)
    assert seen[0] == seen[1]


def test_defaults_are_not_sent():
    def function(a: int, b: int = 2) -> None: ...

    assert msgpack.unpackb(Arguments(function).pack((1,), {})) == {"a": 1}


def test_other_programs_may_send_json():
    arguments = Arguments(every_kind)
    assert arguments.unpack(b'{"a": 1, "b": 2, "more": {"d": "0.1"}}', "json") == (
        (1,),
        {"b": 2, "d": Decimal("0.1")},
    )


@pytest.mark.parametrize(
    ("payload", "encoding", "why"),
    [
        (msgpack.packb({"a": 1}), "msgpack", "missing required field `b`"),
        (msgpack.packb({"a": 1, "b": "2"}), "msgpack", "Expected `int`, got `str` - at `$.b`"),
        (msgpack.packb({"a": 1, "b": 2, "z": 3}), "msgpack", "unknown field `z`"),
        (msgpack.packb([1, 2]), "msgpack", "Expected `object`, got `array`"),
        (b"\xc1", "msgpack", "malformed"),
        (b"{", "json", "truncated"),
        (b"x", "raw", "1 bytes of raw: arguments are a map"),
        (b"", "text", "0 bytes of text"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(payload, encoding, why):
    with pytest.raises(InvalidArgument) as caught:
        Arguments(every_kind).unpack(payload, encoding)
    assert why.lower() in str(caught.value).lower()


class Odd:
    def __repr__(self) -> str:
        return "<odd>"


recursive: list[Any] = []
recursive.append(recursive)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Odd(), "Odd cannot be sent"),
        (2**64, "ints"),
        (recursive, "recursion"),
        ("\ud800", "surrogates"),
        ({Odd(): 1}, ""),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(value, why):
    def function(fine, it): ...

    with pytest.raises(InvalidArgument, match="^it = ") as caught:
        Arguments(function).pack((1, value), {})
    assert why in str(caught.value)


def test_what_is_no_call_is_refused_as_the_call_would_be():
    with pytest.raises(TypeError, match="missing a required argument: 'b'"):
        Arguments(every_kind).pack((1,), {})


def test_bytes_choose_no_code():
    """A pickle, or a msgpack extension, is data or is refused."""
    import pickle

    def function(it): ...

    assert there_and_back(function, pickle.dumps(Point(1)))[1]["it"] == pickle.dumps(Point(1))
    with pytest.raises(InvalidArgument):
        Arguments(every_kind).unpack(msgpack.packb({"a": msgpack.ExtType(5, b"x"), "b": 1}), "msgpack")


class Model:
    """What pydantic's BaseModel can do, as far as it is asked here; tests/client/test_pydantic.py has the real one."""

    def __init__(self, id: UUID) -> None:
        self.id = id

    def model_dump(self, *, mode: str, round_trip: bool) -> dict[str, Any]:
        assert (mode, round_trip) == ("python", True)
        return {"id": self.id}

    @classmethod
    def model_validate(cls, value: dict[str, Any]) -> "Model":
        return cls(UUID(value["id"]))


def test_models_say_themselves():
    def function(it: Model, many: list[Model]) -> None: ...

    _, kwargs = there_and_back(function, Model(ID), [Model(ID)])
    assert isinstance(kwargs["it"], Model) and kwargs["it"].id == kwargs["many"][0].id == ID


def test_paths_and_addresses_go_as_text():
    def function(path: Path, addresses: list[IPv4Address], net: IPv6Network) -> None: ...

    _, kwargs = there_and_back(
        function, Path("/srv/a b"), [IPv4Address("192.0.2.1")], IPv6Network("2001:db8::/32")
    )
    assert kwargs == {
        "path": Path("/srv/a b"),
        "addresses": [IPv4Address("192.0.2.1")],
        "net": IPv6Network("2001:db8::/32"),
    }
    for wrong in (7, "192.0.2.1/33"):
        with pytest.raises(InvalidArgument):
            Arguments(function).unpack(
                msgpack.packb({"path": "/", "addresses": [wrong], "net": "::/0"}), "msgpack"
            )


def test_a_type_that_nobody_can_make_is_refused():
    def function(it: Odd) -> None: ...

    with pytest.raises(InvalidArgument, match="Odd cannot be made from what was sent"):
        Arguments(function).unpack(msgpack.packb({"it": 1}), "msgpack")


def test_annotations_that_cannot_be_looked_up_are_named():
    def function(it: "NotThere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    arguments = Arguments(function)
    payload = arguments.pack((1,), {})  # who submits needs none
    with pytest.raises(InvalidArgument, match="NotThere"):
        arguments.unpack(payload, "msgpack")


def test_no_result_is_none_and_a_result_is_what_the_function_returns():
    def function() -> Point: ...

    arguments = Arguments(function)
    assert arguments.result(None, "raw") is None
    assert arguments.result(pack("result", Point(3)), "msgpack") == Point(3)
    assert arguments.result(b'{"x": 4}', "json") == Point(4)
    assert arguments.result(b"text", "text") == "text" and arguments.result(b"\xff", "raw") == b"\xff"
    with pytest.raises(InvalidArgument, match="Expected `object`, got `int`"):
        arguments.result(b"\x05", "msgpack")
