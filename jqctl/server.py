"""The verbs about the daemon as a whole, and about jqctl itself.

Knows:         arguments, help and examples of these verbs.
Must not know: the wire, how a connection is made (connect.py), how a value is shown (output.py).
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import time
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec import Struct, structs

from jqctl import output, watch
from jqctl.group import Settings, cli, verb
from jqctl.replies import show_one

if TYPE_CHECKING:
    from jqctl.connect import Connection

# A snapshot takes seconds; nobody minds a fifth of one.
_SNAPSHOT_LOOK_S: Final = 0.2
wait = time.sleep


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


@verb
@click.option("--no-wait", is_flag=True, help="Only have it begun; else it is made when this ends.")
def snapshot(settings: Settings, connection: "Connection", no_wait: bool) -> int:
    """Have the daemon make a snapshot, so that its next start is quick.

    It makes them by itself too, as its log grows: settings snapshot_bytes and snapshot_interval_ms. Everybody
    is served meanwhile. Exit code 1: it was given up, since the disk is full.

    \b
    Examples:
      jqctl snapshot && systemctl restart jqd
      jqctl snapshot --no-wait
    """
    from jqd.client import requests

    lsn = connection.call(requests.snapshot()).lsn
    figures: dict[str, int] = {}
    while not no_wait:
        figures = connection.call(requests.stats()).process
        if figures["snapshot_lsn"] >= lsn:
            break
        if not figures["snapshot_under_way"]:
            output.say(f"jqctl: the snapshot of LSN {lsn} was given up: the daemon's log says why")
            return 1
        wait(_SNAPSHOT_LOOK_S)
    thing: dict[str, Any] = {"lsn": lsn}
    thing |= {
        name: figures[name] for name in ("snapshot_lsn", "snapshot_bytes", "log_bytes") if name in figures
    }
    show_one(settings, thing, ("lsn",))
    return 0


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
