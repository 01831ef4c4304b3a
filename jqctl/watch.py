"""Read again and again until Ctrl-C: what --watch does.

Knows:         when the next reading is due, how a screen is drawn over, how an outage is shown.
Must not know: what is read and how it is shown, verbs.

    terminal, table       drawn over, cut at the lower edge; what was on the screen before is scrolled up
    anything else         appended: a table under its date, or with -o json one line for each reading
"""

import contextlib
import functools
import io
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import click

from jqctl import output
from jqctl.group import Settings
from jqd.errors import InvalidArgument, StoreRolledBack, UnavailableError

if TYPE_CHECKING:
    from jqctl.connect import Connection

R = TypeVar("R")

_EVERY_MS_MIN: Final = 100  # faster than anybody reads, and no load yet
_EVERY_MS_MAX: Final = 86_400_000


class _Interval(click.ParamType[float]):
    """A duration in seconds within the limits."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from jqd.client.values import to_ms

        try:
            ms = to_ms("duration", value)
        except InvalidArgument as error:
            self.fail(output.clean(str(error)), param, ctx)
        if not _EVERY_MS_MIN <= ms <= _EVERY_MS_MAX:
            self.fail(f"duration = {value!r}: 100ms to 1d", param, ctx)
        return ms / 1_000


option = click.option(
    "--watch",
    "every_s",
    type=_Interval(),
    help="Read again so often, 100ms to 1d, until Ctrl-C, which is exit code 0. While the daemon is away, "
    "that is said and tried again; so it is if an older backup was restored.",
)


def watch(
    settings: Settings,
    connection: "Connection",
    every_s: float,
    read: Callable[[], R],
    show: Callable[[R, int], None],
    *,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    date_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> None:
    """Show one reading after the other. The first one must succeed: a wrong address is no outage.

    Args:
        show: prints a reading; gets its date in unix milliseconds.
        wait, clock: in seconds; date_ms: unix milliseconds.
    """
    if settings.format == "id":
        raise click.UsageError("--watch: with -o table or json")
    connection.wait_for_nobody()
    on_screen = settings.format == "table" and output.is_screen(sys.stdout)
    try:
        reading = read()
        shown = _Screen() if on_screen else _Journal(dated=settings.format == "table")
        due = clock()
        while True:
            shown.draw(functools.partial(show, reading), date_ms())
            is_away = True
            while is_away:
                # A reading that is overdue is left out, so that they do not come in a rush.
                now = clock()  # once: it goes on between two looks
                due = max(due + every_s, now)
                wait(due - now)
                try:
                    reading = read()
                    is_away = False
                except (UnavailableError, StoreRolledBack) as error:
                    shown.say_away(f"{error.code}: {error}", date_ms())
    except KeyboardInterrupt:
        return


class _Journal:
    """Appends one reading to the other. An outage is said once, on stderr, and so is its end."""

    def __init__(self, *, dated: bool) -> None:
        self._dated = dated
        self._is_away = False

    def draw(self, show: Callable[[int], None], wall_ms: int) -> None:
        if self._is_away:
            self._is_away = False
            output.say("jqctl: it is there again")
        if self._dated:
            click.echo(output.rfc3339(wall_ms))
        show(wall_ms)

    def say_away(self, why: str, wall_ms: int) -> None:  # noqa: ARG002 - a screen shows the date
        if not self._is_away:
            self._is_away = True
            output.say(f"jqctl: {why}; trying again")


class _Screen:
    """Draws each reading over the one before; in an outage the last one stays, under what is wrong."""

    def __init__(self) -> None:
        import shutil

        self._lines: list[str] = []
        # What the user has before them goes into the scrollback instead of being painted over.
        click.echo("\n" * shutil.get_terminal_size().lines, nl=False)

    def draw(self, show: Callable[[int], None], wall_ms: int) -> None:
        with contextlib.redirect_stdout(_Frame()) as frame:
            show(wall_ms)
        self._lines = frame.getvalue().splitlines()
        self._paint([output.rfc3339(wall_ms), ""])

    def say_away(self, why: str, wall_ms: int) -> None:
        self._paint([output.rfc3339(wall_ms), output.clean(why), ""])

    def _paint(self, heading: list[str]) -> None:
        import shutil

        size = shutil.get_terminal_size()
        lines = [*heading, *self._lines]
        # A line longer than the terminal takes several rows; the last row is for the cursor.
        rows = [-(-len(click.unstyle(line)) // size.columns) or 1 for line in lines]
        left = len(lines)
        while left > 1 and sum(rows[:left]) + (left < len(lines)) > size.lines - 1:
            left -= 1
        if left < len(lines):
            lines[left:] = [f"... {len(lines) - left} more lines"]
        # In one piece, so that nothing flickers: to the corner, erase to the end, write.
        click.echo("\x1b[H\x1b[J" + "".join(f"{line}\n" for line in lines), nl=False, color=True)


class _Frame(io.StringIO):
    """Stands for the terminal that it is going to be shown on."""

    def isatty(self) -> bool:
        return True
