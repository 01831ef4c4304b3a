"""How much work a call is, counted and not timed: the same on every machine, however busy.

Knows:
    how to count the interpreter's steps, and comparisons of numbers.
Must not know:
    what is being counted.
"""

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


def steps_of(call: Callable[[], object]) -> int:
    """Return how many bytecode instructions a call takes. What is written in C counts as one.

    The garbage collector waits meanwhile: the finalizers of what other tests left would be counted too.
    """
    steps = 0

    def tracer(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return tracer

    before = sys.gettrace()
    was_collecting = gc.isenabled()
    gc.disable()
    sys.settrace(tracer)
    try:
        call()
    finally:
        sys.settrace(before)
        if was_collecting:
            gc.enable()
    return steps


class Counted(int):
    """A number that counts how often its like are compared, in C too."""

    comparisons = 0

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __neg__(self) -> Self:
        return type(self)(-int(self))

    __hash__ = int.__hash__
