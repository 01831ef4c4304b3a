"""Both clients offer the same verbs, said and described alike, in the order of the commands."""

import inspect
import re

import pytest

from jqd.client.aio import AsyncClient
from jqd.client.sync import Client
from jqd.core.commands import COMMANDS

# A program with an event loop asks many things at once with asyncio.gather().
ONLY_BLOCKING = ["call_many"]
NAMES = [name for name in vars(AsyncClient) if not name.startswith("_")]
NO_VERBS = ["connect", "close", "call"]
SPECIAL = ["__init__", "__enter__", "__exit__", "__reduce__"]


def described(text: str) -> str:
    return re.sub(r"\bA cancelled\b", "An interrupted", text)


def of_asyncio(name: str) -> str:
    return re.sub(r"__(enter|exit)__", r"__a\1__", name)


def test_the_same_names_in_the_same_order():
    assert [name for name in vars(Client) if not name.startswith("_") and name not in ONLY_BLOCKING] == NAMES
    assert set(SPECIAL) <= vars(Client).keys()


def test_the_same_attributes():
    blocking, other = (
        [name for name in vars(kind()) if not name.startswith("_")] for kind in (Client, AsyncClient)
    )
    assert blocking == other == ["url"]


def test_the_verbs_are_the_commands_in_their_order():
    verbs = [name for name in NAMES if name not in NO_VERBS]
    of_one_job = {
        "extend",
        "ack",
        "fail",
        "release",
        "wait",
    }  # their command takes many: for these there is NAME_many
    assert {f"{verb}_many" for verb in of_one_job} <= set(verbs)
    plain = [name for name in verbs if name.removesuffix("_many") not in of_one_job or name in of_one_job]
    assert plain == [verb for verb in COMMANDS if verb != "hello"]


@pytest.mark.parametrize("name", [*NAMES, *SPECIAL])
def test_the_same_parameters_defaults_types_and_words(name):
    blocking, other = getattr(Client, name), getattr(AsyncClient, of_asyncio(name))
    # As text: names and their order, kinds, defaults, annotations, and what is returned.
    assert str(inspect.signature(blocking)) == str(inspect.signature(other))
    assert (blocking.__doc__ or "") == described(other.__doc__ or "")
    assert name.startswith("__") or blocking.__doc__
    assert inspect.iscoroutinefunction(other) is (name not in ("__init__", "__reduce__"))
    assert not inspect.iscoroutinefunction(blocking)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("connect", "close")])
def test_every_request_takes_a_timeout(name):
    parameter = inspect.signature(getattr(Client, name)).parameters["timeout"]
    assert (parameter.kind, parameter.default) == (inspect.Parameter.KEYWORD_ONLY, None)


@pytest.mark.parametrize("section", ["Args", "Raises (every verb)"])
def test_the_classes_promise_the_same(section):
    def promised(kind: type) -> str:
        doc = inspect.getdoc(kind) or ""
        text = doc[doc.index(f"{section}:") :].partition("\n\n")[0]
        # A client without an event loop is in no other one.
        return re.sub(r"\n *RuntimeError: used in another event loop of this process: [\w ]*\.", "", text)

    assert promised(Client) == promised(AsyncClient)
