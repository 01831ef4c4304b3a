"""How far long work is, drawn on stderr while somebody can see it.

Knows:         when a bar may be drawn, how it makes room for lines of output.
Must not know: what the work is, verbs.

rich is loaded when the first bar is drawn: work that is over by then costs nothing for it.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from jqctl import output

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Unit = Literal["jobs", "lines", "bytes"]


class Progress:
    """A bar, or a count where nobody knows of how many; a context manager, gone without a trace at its end.

    Args:
        what: the work, in a word or two.
        unit: what is counted.
    """

    def __init__(self, what: str, unit: Unit) -> None:
        self._what = what
        self._unit: Unit = unit
        self._visible = sys.stderr is not None and output.is_screen(sys.stderr)
        self._bar: Bar | None = None

    def move(self, done: int, total: int | None = None, *, what: str = "") -> None:
        """Say how far it is. The first call that is not the end draws it."""
        if not self._visible or (self._bar is None and done == total):
            return
        if self._bar is None:
            self._bar = _make(self._unit)
            self._bar.add_task(what or self._what, total=total, completed=done)
            self._bar.start()
        else:
            self._bar.update(
                self._bar.task_ids[0], completed=done, total=total, description=what or self._what
            )

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Make room for lines on the same terminal."""
        if self._bar is not None:
            self._bar.stop()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.start()

    def end(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._visible = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


def _make(unit: Unit) -> "Bar":
    from rich import progress
    from rich.console import Console

    counted: list[progress.ProgressColumn]
    if unit == "bytes":
        counted = [progress.DownloadColumn(), progress.TransferSpeedColumn(), progress.TimeRemainingColumn()]
    else:
        counted = [progress.TextColumn(f"{{task.completed:,}} {unit}"), progress.TimeElapsedColumn()]
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        *counted,
        console=Console(stderr=True),
        transient=True,
        # What is printed goes where it always goes: aside() makes room.
        redirect_stdout=False,
        redirect_stderr=False,
    )
