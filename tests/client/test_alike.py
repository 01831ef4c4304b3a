"""Both clients offer the same verbs, said and described alike."""

import inspect
import re

import pytest

from jqd.client.aio import AsyncClient
from jqd.client.sync import Client

# A program with an event loop asks many things at once with asyncio.gather().
ONLY_BLOCKING = ["call_many"]
VERBS = [name for name in vars(AsyncClient) if not name.startswith("_")]


def described(text: str) -> str:
    return re.sub(r"\bA cancelled\b", "An interrupted", text)


def test_the_same_names_in_the_same_order():
    assert [name for name in vars(Client) if not name.startswith("_") and name not in ONLY_BLOCKING] == VERBS


@pytest.mark.parametrize("name", [*VERBS, "__init__", "__enter__", "__exit__"])
def test_the_same_parameters_defaults_types_and_words(name):
    blocking = getattr(Client, name)
    other = getattr(AsyncClient, re.sub(r"__(enter|exit)__", r"__a\1__", name))
    assert str(inspect.signature(blocking)) == str(inspect.signature(other))
    assert (inspect.getdoc(blocking) or "") == described(inspect.getdoc(other) or "")
    assert inspect.iscoroutinefunction(other) is (name != "__init__")
    assert not inspect.iscoroutinefunction(blocking)


@pytest.mark.parametrize("section", ["Args", "Raises (every verb)"])
def test_the_classes_promise_the_same(section):
    def promised(kind: type) -> str:
        doc = inspect.getdoc(kind) or ""
        text = doc[doc.index(f"{section}:") :].partition("\n\n")[0]
        return text.replace("after a fork, or in another event loop:", "after a fork:")

    assert promised(Client) == promised(AsyncClient)
