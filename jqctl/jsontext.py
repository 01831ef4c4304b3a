"""Where a text stops being JSON, in words for who wrote it.

Knows:         positions as an editor counts them, the names of JSON's types.
Must not know: what the text is for.
"""

import json

import msgspec

_TYPES = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


def fault(data: bytes) -> str:
    """Say what is wrong with a JSON text and where; "" if it is good."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return f"no UTF-8 at byte {error.start + 1}"
    try:
        msgspec.json.decode(
            data, type=msgspec.Raw
        )  # looks at all of it and converts nothing: any number is good
    except RecursionError:
        return "nested too deeply"
    except msgspec.DecodeError as error:
        return _explain(text) or str(error)
    return ""


def _explain(text: str) -> str:
    # The standard library is slower and knows the place of every fault.
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        what = error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
        if not text.strip():
            return "it is empty"
        if error.pos >= len(text.rstrip()):
            what = "it ends too early,"
        return f"{what} at {line}column {error.colno}"
    except (ValueError, RecursionError):
        pass
    return ""  # it takes NaN for a number


def kind(data: bytes) -> str:
    """Name the type of a good JSON text."""
    return _TYPES.get(type(json.loads(data)), "a number")
