"""Completion of a command line as it is typed: the scripts that shells load, and what they ask jqctl.

Knows:         what bash makes of a word, which names a shell takes as they are, how long a user waits.
Must not know: verbs and options: click completes them from the commands themselves.

A script asks by starting jqctl with COMPLETION_VARIABLE set. Names of queues come from the server, if it
answers at once; a failure has no place to be shown and means no names.
"""

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, Final

from click import shell_completion
from click.shell_completion import split_arg_string

from jqctl.group import COMPLETION_VARIABLE
from jqd.errors import JqdError

if TYPE_CHECKING:
    import click

# For each address that is tried, and for all names: what a user hardly notices.
_PATIENCE_S: Final = 0.3
# What goes into a command line needs no quotes, whatever a server says.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")


@shell_completion.add_completion_class
class Bash(shell_completion.BashComplete):
    """As click's, and right with a colon too.

    bash ends words at ':' and '=' (COMP_WORDBREAKS), so click's own script would make of the name `mail:high`
    two words. This one sends the line as it was typed, and takes off what stands before the last colon.
    """

    source_template = """\
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}"
    local word="${line##*[[:space:]=]}" prefix="" reply type value
    [[ $COMP_WORDBREAKS == *:* ]] && prefix="${word%%"${word##*:}"}"
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            plain) COMPREPLY+=("${value#"$prefix"}") ;;
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
        esac
    done < <(env COMP_WORDS="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s 2>/dev/null ||
    complete -F %(complete_func)s %(prog_name)s  # bash before 4.4
"""

    @staticmethod
    def _check_version() -> None:
        pass  # the script fits every bash, and may be made for another machine

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)[1:]
        return (words, "") if not words or line[-1:].isspace() else (words[:-1], words[-1])


def script(shell: str, cli: "click.Command") -> str:
    """Return the script that makes a shell complete `jqctl`."""
    kind = shell_completion.get_completion_class(shell)
    assert kind is not None, shell
    return kind(cli, {}, "jqctl", COMPLETION_VARIABLE).source()


def queue_names(url: str | None, incomplete: str) -> list[str]:
    """Return the names of queues that begin so, of the first server that answers at once; else none."""
    from jqctl.connect import default_urls

    for at in [url] if url else default_urls():
        if (names := _names(at)) is not None:
            return [name for name in names if name.startswith(incomplete) and _NAME.fullmatch(name)]
    return []


def _names(url: str) -> list[str] | None:
    """Return the names that come within the time, None: nobody answers."""
    from jqd.client.retry import Backoff
    from jqd.client.sync import Client
    from jqd.client.values import to_address

    try:
        to_address(url)
    except JqdError:
        return None  # nobody can be there
    names: list[str] | None = None
    until = time.monotonic() + _PATIENCE_S
    cursor: str | None = ""
    # Not connected beforehand, which has a time of its own: the first request does it within its timeout.
    with contextlib.closing(Client(url, worker="jqctl", backoff=Backoff(give_up_ms=0))) as client:
        while cursor is not None and (left_s := until - time.monotonic()) > 0:
            try:
                page = client.queues(cursor=cursor, timeout=left_s)
            except JqdError:
                break
            names = (names or []) + [info.queue for info in page.queues]
            cursor = page.cursor
    return names
