"""The command `jqctl` and what all its verbs have in common.

Knows:         the options that stand before or after every verb, the types of values, how a function
               becomes a verb.
Must not know: any verb (jobs.py, queues.py, server.py, offline.py), the wire, how a connection is made (connect.py).

The client is imported when a verb runs, so that `jqctl --help` and `--version` cost only click.
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from jqctl import output
from jqd import __version__
from jqd.errors import InvalidArgument, PayloadTooLarge

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from jqctl.connect import Connection

F = TypeVar("F", bound=Callable[..., Any])

# What a shell's script sets when it asks what there is to complete: click makes it of the program's name.
COMPLETION_VARIABLE: Final = "_JQCTL_COMPLETE"
STATES: Final = ("delayed", "ready", "leased", "done", "dead", "cancelled", "expired")


class Settings:
    """What --url or $JQD_URL, --timeout and -o said, before or after the verb."""

    def __init__(self) -> None:
        self.url: str | None = None
        self.timeout = "30s"
        self.format: output.Format = "table"

    def connection(self) -> "Connection":
        from jqctl.connect import Connection

        # An option was looked at when it was read, the variable not.
        if self.url is not None and (wrong := _url_fault(self.url)):
            raise click.BadParameter(wrong, param_hint="$JQD_URL")
        return Connection(self.url, self.timeout)


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        setattr(context.ensure_object(Settings), str(parameter.name), value)


class _Checked(click.ParamType[str]):
    """A text that the client will read: refused here if it cannot."""

    def __init__(self, name: str, check: str, *, zero: bool = True) -> None:
        self.name = name
        self._check = check
        self._zero = zero

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from jqd.client import values

        try:
            read = getattr(values, self._check)(self.name, value)
        except InvalidArgument as error:
            self.fail(output.clean(str(error)), param, ctx)
        if not read and not self._zero:
            self.fail(f"{self.name} = {value!r}: must be 1 ms or more", param, ctx)
        return value


class _Number(click.IntRange):
    """What jqd gave out as a number. click calls a text that is none "not a valid integer range"."""

    def __init__(self, name: str, most: int) -> None:
        super().__init__(min=1, max=most)
        self._said = name

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(str(value))
        except ValueError:
            self.fail(
                f"{output.clean(str(value))!r}: a {self._said} is a number, as it was printed", param, ctx
            )
        return super().convert(number, param, ctx)


class _Url(click.ParamType[str]):
    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if ctx is not None and ctx.resilient_parsing:
            return value  # a line that is being completed: without its server it is not another one's
        if ctx is not None and param is not None:
            source = ctx.get_parameter_source(str(param.name))
            if source is ParameterSource.ENVIRONMENT:
                return value  # an option behind the verb may still say better
        if wrong := _url_fault(value):
            self.fail(wrong, param, ctx)
        return value


def _url_fault(url: str) -> str:
    """Say what is wrong with an address; "" if it is good."""
    from jqd.client.values import to_address

    try:
        to_address(url)
    except InvalidArgument as error:
        return output.clean(str(error))
    return ""


class _Queue(_Checked):
    """A queue's name, completed by the server.

    weighted: it may have a weight behind it, as in urgent=3.
    """

    def __init__(self, *, weighted: bool = False) -> None:
        super().__init__("queue", "to_name")
        self._weighted = weighted

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if ctx is None or not ctx.resilient_parsing:
            super().convert(value.partition("=")[0] if self._weighted else value, param, ctx)
        return value

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list["CompletionItem[str]"]:
        from click.shell_completion import CompletionItem

        from jqctl.completion import queue_names

        url = ctx.ensure_object(Settings).url
        return [CompletionItem(name) for name in queue_names(url, incomplete)]


QUEUE: Final = _Queue()
WEIGHTED_QUEUE: Final = _Queue(weighted=True)
DURATION: Final = _Checked("duration", "to_ms")
TIMEOUT: Final = _Checked("duration", "to_ms", zero=False)
DATE: Final = _Checked("date", "to_wall_ms")
RETRY: Final = _Checked("policy", "to_retry")
ID: Final = _Number("job id", (1 << 60) - 1)
TOKEN: Final = _Number("token", (1 << 64) - 1)


# What these options are called in a command's parameters.
COMMON: Final = frozenset({"url", "timeout", "format"})


def output_option(formats: Sequence[str], text: str) -> Callable[[F], F]:
    """Return the decorator that gives a command -o."""
    return click.option(
        "-o",
        "--output",
        "format",
        type=click.Choice(formats),
        expose_value=False,
        callback=_remember,
        help=text,
    )


def common(command: F, envvar: str | None = None) -> F:
    """Give a command the options that stand before or after the verb; after it they count more.

    envvar: where the address comes from if no option says it; only for what stands before.
    """
    for option in (
        output_option(
            ("table", "json", "id"),
            "table for people; json: one object a line; id: what the next command wants.",
        ),
        click.option(
            "--timeout",
            type=TIMEOUT,
            expose_value=False,
            callback=_remember,
            help="For each request: 30s. A waiting lease has its --wait on top.",
        ),
        click.option(
            "--url",
            type=_Url(),
            metavar="URL",
            envvar=envvar,
            expose_value=False,
            callback=_remember,
            help="jqd://HOST:PORT or unix:///PATH; also $JQD_URL.",
        ),
    ):
        command = option(command)
    return command


def verb(function: Callable[..., int | None], group: click.Group | None = None) -> click.Command:
    """Make a command out of a function that takes the settings and a connection first.

    group: where it belongs; None: `jqctl` itself.
    """

    @functools.wraps(function)
    def invoke(**arguments: object) -> int:
        settings = click.get_current_context().ensure_object(Settings)
        connection = settings.connection()
        try:
            with connection:
                code = function(settings, connection, **arguments) or 0
            sys.stdout.flush()
        except BrokenPipeError:
            raise output.PipeClosed from None  # under its own name click would make exit code 1 of it
        except (InvalidArgument, PayloadTooLarge) as error:  # it does not matter who has found it
            from jqctl.wording import reworded

            words = reworded(str(error), click.get_current_context().command)
            raise click.UsageError(output.clean(words)) from None
        return code

    # What click.option and click.argument have left on the function goes over with functools.wraps.
    command = (group or cli).command(name=function.__name__.rstrip("_"))(common(invoke))
    command.params.sort(key=lambda parameter: parameter.name in COMMON)  # help shows a verb's own ones first
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@functools.partial(common, envvar="JQD_URL")
@click.version_option(__version__, prog_name="jqctl", message="%(prog)s %(version)s")
def cli() -> None:
    """Submit, run and look at the jobs of a jqd daemon.

    \b
    Examples:
      jqctl submit emails "hello"              add a job, print its id
      jqctl lease emails --wait 20s            take one: JOB_ID TOKEN ATTEMPT PAYLOAD
      jqctl ack JOB_ID TOKEN                   finish it
      jqctl queues                             how many jobs are where

    \b
    In a script, where the queue may be empty (a lease lasts 30s unless --lease says otherwise):
      held=$(jqctl lease emails -o id) && [ -n "$held" ] && jqctl ack $held

    \b
    Without --url and $JQD_URL the first of these that answers is used:
      /run/jqd/jqd.sock                        the service's socket
      /var/lib/jqd/jqd.sock                    root; others: $XDG_DATA_HOME/jqd/jqd.sock
                                               or ~/.local/share/jqd/jqd.sock
      jqd://127.0.0.1:7717

    \b
    Durations: 500ms, 30s, 5m, 1h30m, 2d; a number alone means seconds.
    Retry policies, what is not said being the default shown: exponential,base=1s,factor=2,cap=1h,
    jitter=20%; linear,base=1s,cap=1h; fixed,30s; list,1s,10s,5m,jitter=0.
    Exit codes: 0 done, 1 refused by the daemon (the code is printed), 2 wrong usage, whether jqctl or
    the daemon finds it, 3 not reachable or no reply in time; the message then says whether the outcome
    is unknown.
    74 the output cannot be written or the input not be read; what was asked may have been done.

    json has ids and tokens as strings, dates as *_ms and in RFC 3339, payloads as text or JSON value
    by their encoding, else as payload_base64; msgpack, which Python tasks have, as both. Colours are
    off where $NO_COLOR is set, and on where $FORCE_COLOR is.
    """
