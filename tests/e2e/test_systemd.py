"""The real daemon under what systemd gives it, and the shipped units under systemd's own tools.

What needs systemd-analyze or strace runs with the slow suites, and fails there without them.
"""

import re
import shutil
import signal
import socket
import stat
import subprocess
import sys

import pytest

from tests.support.daemon import ROOT, environment
from tests.support.systemd import UNITS, Manager, rendered
from tests.support.wire import PATIENCE_S, Wire, hello

pytestmark = pytest.mark.e2e


@pytest.fixture
def manager(tmp_path):
    with Manager(tmp_path) as made:
        yield made


def bound(family, address):
    one = socket.socket(family)
    one.bind(address)
    one.listen()
    return one


def pings(address) -> bool:
    with Wire.connect(address) as wire:
        return "wall_ms" in wire.ask("ping")


# --- Type=notify ------------------------------------------------------------------------------


def test_manager_hears_recovering_ready_alive_stopping_in_this_order(manager):
    with manager.daemon() as daemon:
        first, second, ready, alive = (manager.next() for _ in range(4))
        for asks in (first, second):
            assert int(asks["EXTEND_TIMEOUT_USEC"]) > 0
            assert asks["STATUS"].startswith("Recovering: ")
        assert ready["READY"] == "1"
        assert ready["STATUS"] == "Serving " + ", ".join(daemon.ready["listen"])
        assert alive == {"WATCHDOG": "1"}
        with daemon.client() as wire:
            wire.ask("submit", payload=b"x")
            assert daemon.stop() == 0
        assert manager.until("STOPPING")[-1]["STATUS"] == "Draining, connections left: 1"
        assert daemon.stray == []


def test_ready_is_said_when_every_address_answers(manager):
    daemon = manager.daemon()
    daemon.launch()
    try:
        ready = manager.until("READY")[-1]
        tcp, unix = ready["STATUS"].removeprefix("Serving ").split(", ")
        host, port = tcp.removeprefix("jqd://").split(":")
        assert pings((host, int(port)))
        assert pings(unix.removeprefix("unix://"))
    finally:
        daemon.kill()


def test_start_that_fails_is_never_ready(manager, tmp_path):
    (tmp_path / "taken").write_text("mine")
    daemon = manager.daemon("--unix", str(tmp_path / "taken"))
    daemon.launch()
    assert daemon.wait() == 78
    assert all("READY" not in message for message in (manager.next(), manager.next()))


def test_watchdog_is_fed_again_and_again_and_only_by_a_process_that_runs(tmp_path):
    with Manager(tmp_path, watchdog_us=20_000) as manager, manager.daemon() as daemon:
        manager.until("READY")
        for _ in range(5):
            assert manager.next() == {"WATCHDOG": "1"}
        assert daemon.stop() == 0
        manager.until("STOPPING")


def test_abort_of_the_watchdog_says_where_the_daemon_was(manager):
    with manager.daemon() as daemon:
        daemon.signal(signal.SIGABRT)
        assert daemon.wait() == -signal.SIGABRT
        assert any("jqd/server/daemon.py" in line for line in daemon.stray)


def test_directories_come_from_the_manager_and_the_socket_is_the_groups(manager):
    with manager.daemon() as daemon:
        assert daemon.socket_path == str(manager.socket_path)
        assert stat.S_IMODE(manager.socket_path.stat().st_mode) == 0o660
        assert stat.S_IMODE(manager.state.stat().st_mode) == 0o700
        files = list(manager.state.iterdir())
        assert files and all(not stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files)
        assert daemon.stop() == 0
    assert not manager.socket_path.exists()


# --- socket activation ------------------------------------------------------------------------


def test_passed_sockets_are_served_and_stay_the_managers(manager):
    unix = bound(socket.AF_UNIX, str(manager.socket_path))
    tcp = bound(socket.AF_INET, ("127.0.0.1", 0))
    address = "127.0.0.1", tcp.getsockname()[1]
    with unix, tcp, manager.daemon(passed=[unix, tcp]) as daemon:
        assert daemon.ready["listen"] == [f"jqd://127.0.0.1:{address[1]}", f"unix://{manager.socket_path}"]
        assert daemon.address == address
        with daemon.client() as wire:
            assert wire.ask("submit", payload=b"x") == {"job_id": 1}
        assert pings(str(manager.socket_path))
        assert daemon.stop() == 0
        assert manager.socket_path.exists()
        # It is down, and nobody is refused: who connects now is served by the next one.
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(manager.socket_path))
            waiting.sendall(hello())
            daemon.start()
            waiting.settimeout(PATIENCE_S)
            assert waiting.recv(1)


def test_passed_socket_needs_no_network_of_its_own(manager):
    with bound(socket.AF_UNIX, str(manager.socket_path)) as unix:
        with manager.daemon("--listen", "off", passed=[unix]) as daemon:
            assert daemon.ready["listen"] == [f"unix://{manager.socket_path}"]
            assert pings(str(manager.socket_path))
            daemon.kill()
        assert manager.socket_path.exists()


def test_passed_socket_that_others_could_reach_is_refused_before_anything_is_made(manager):
    with bound(socket.AF_INET, ("0.0.0.0", 0)) as tcp:
        daemon = manager.daemon(passed=[tcp])
        daemon.launch()
        assert daemon.wait() == 78
        assert any("only loopback" in line for line in daemon.stray)
        assert not manager.state.exists()


# Instead of serving it prints which of systemd's variables a child of the daemon would inherit.
PRINT_VARIABLES = """
import os
from jqd import __main__ as program
from jqd.server import daemon
async def print_variables(*_):
    print(sorted(name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))))
daemon._serve = print_variables
program.main()
"""


def test_variables_of_the_manager_are_not_inherited(manager):
    with bound(socket.AF_UNIX, str(manager.socket_path)) as unix:
        daemon = manager.daemon(passed=[unix])
        done = subprocess.run(
            [*daemon.wrap, sys.executable, "-c", PRINT_VARIABLES],
            env=environment(daemon.environ),
            pass_fds=daemon.pass_fds,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert done.stdout == "[]\n", done.stderr


# --- the units under systemd's tools ------------------------------------------------------------


def analyze(*arguments: object) -> str:
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is not installed: apt-get install systemd"
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_user_and_group_are_made_as_the_units_need_them(tmp_path):
    """systemd-sysusers makes them in a root directory of the test's, from where docs/systemd.md installs the file."""
    program = shutil.which("systemd-sysusers")
    assert program, "systemd-sysusers is not installed: apt-get install systemd"
    directory = tmp_path / "usr" / "lib" / "sysusers.d"
    directory.mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    shutil.copy(UNITS / "jqd.sysusers.conf", directory / "jqd.conf")
    done = subprocess.run([program, f"--root={tmp_path}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    ((name, _, uid, gid, _, home, shell),) = (
        line.split(":") for line in (tmp_path / "etc" / "passwd").read_text().splitlines()
    )
    assert (name, home) == ("jqd", "/var/lib/jqd") and shell.endswith("nologin") and 0 < int(uid) < 1_000
    assert (tmp_path / "etc" / "group").read_text() == f"jqd:x:{gid}:\n"


@pytest.mark.slow
@pytest.mark.parametrize(("socket_activated", "exposure_max"), [(False, 1.2), (True, 0.5)])
def test_units_are_valid_and_tight(tmp_path, socket_activated, exposure_max):
    unit = rendered(tmp_path, socket_activated=socket_activated)
    assert analyze("verify", unit, unit.with_name("jqd.socket")) == ""
    said = analyze("security", "--offline=yes", "--no-pager", f"--threshold={int(exposure_max * 10)}", unit)
    assert float(re.search(r"exposure level for jqd\.service: ([0-9.]+)", said)[1]) <= exposure_max


def filtered() -> set[str]:
    """Return the system calls that the unit's filter lets through, by systemd's own lists."""
    sets: dict[str, set[str]] = {}
    name = ""
    for line in analyze("syscall-filter", "--no-pager").splitlines():
        word = line.strip()
        if line.startswith("@"):
            name, sets[word] = word, set()
        elif word and not word.startswith("#"):
            sets[name].add(word)

    def members(name: str) -> set[str]:
        return set().union(*(members(each) if each.startswith("@") else {each} for each in sets[name]))

    return (members("@default") | members("@system-service")) - members("@privileged") - members("@resources")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_daemon_makes_no_system_call_that_the_unit_refuses(manager, tmp_path):
    strace = shutil.which("strace")
    assert strace, "strace is not installed: apt-get install strace"
    trace = tmp_path / "trace"
    daemon = manager.daemon("--max-connections", "1100")  # more than the usual soft limit: it is raised
    daemon.wrap = [strace, "-f", "-qq", "-o", str(trace), "-s", "0", *daemon.wrap]
    with daemon:
        for address in (daemon.address, daemon.socket_path):
            with Wire.connect(address) as wire:
                wire.ask("submit", payload=bytes(100_000))
                token = wire.ask("lease")["token"]
                wire.ask("ack", items=[[token, [[1, 1]], None]])
                wire.ask("stats")
        assert daemon.stop() == 0
    lines = [re.sub(r"^\d+ +", "", line) for line in trace.read_text().splitlines()]
    made = {found[1] for line in lines if (found := re.match(r"([a-z0-9_]+)\(", line))}
    assert {"bind", "listen", "accept4", "fdatasync", "sendto", "prlimit64"} <= made, "the trace is whole"
    assert made - filtered() == set()
    # MemoryDenyWriteExecute=
    assert not [line for line in lines if "PROT_WRITE|PROT_EXEC" in line]
    assert not [line for line in lines if line.startswith("mprotect") and "PROT_EXEC" in line]
