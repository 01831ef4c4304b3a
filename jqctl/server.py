"""The verbs about the daemon as a whole, and about jqctl itself.

Knows:         arguments, help and examples of these verbs.
Must not know: the wire, how a connection is made (connect.py), how a value is shown (output.py).
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import time
from typing import TYPE_CHECKING

import click
from msgspec import Struct, structs

from jqctl import watch
from jqctl.group import Settings, cli, verb
from jqctl.replies import show_one

if TYPE_CHECKING:
    from jqctl.connect import Connection


@verb
@watch.option
def stats(settings: Settings, connection: "Connection", every_s: float | None) -> None:
    """Show figures of the daemon.

    \b
    Examples:
      jqctl stats -o json
      jqctl stats --watch 10 -o json >> stats.jsonl
    """
    from jqd.client import requests

    def read() -> Struct:
        figures: Struct = connection.call(requests.stats())
        return figures

    if every_s is None:
        show_one(settings, read(), ("store_id",))
    else:
        watch.watch(
            settings, connection, every_s, read, lambda figures, _: show_one(settings, figures, ("store_id",))
        )


@verb
def ping(settings: Settings, connection: "Connection") -> None:
    """Ask whether the daemon is there and its disk answers.

    \b
    Example:
      jqctl ping --timeout 2s
    """
    from jqd.client import requests

    began = time.perf_counter()
    reply = connection.call(requests.ping())
    round_trip_ms = round((time.perf_counter() - began) * 1_000, 3)
    thing = structs.asdict(reply) | {"url": connection.url, "round_trip_ms": round_trip_ms}
    show_one(settings, thing, ("url",))


@cli.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the script that makes a shell complete verbs, options, and the names of queues.

    Names come from the daemon, if it answers within 300 ms.

    \b
    Examples:
      source <(jqctl completion bash)                     # now; or in ~/.bashrc
      jqctl completion bash > ~/.local/share/bash-completion/completions/jqctl
      jqctl completion zsh > "${fpath[1]}/_jqctl"         # with compinit in ~/.zshrc
      jqctl completion fish > ~/.config/fish/completions/jqctl.fish
    """
    from jqctl.completion import script

    click.echo(script(shell, cli), nl=False)
