"""The shipped units say what the daemon takes from them; tests/e2e/test_systemd.py has systemd's own tools."""

import re
from collections import defaultdict
from pathlib import Path

from jqd.errors import (
    EXIT_CONFIGURATION,
    EXIT_DATA_DAMAGED,
    EXIT_DIRECTORY_LOCKED,
    EXIT_INVARIANT_BROKEN,
    EXIT_IO_ERROR,
)
from jqd.server import daemon
from jqd.server.config import CONNECTIONS_DEFAULT, FILES_RESERVED, SETTINGS, load_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "systemd.md").read_text(encoding="utf-8")
ENVIRON = {"STATE_DIRECTORY": "/var/lib/jqd", "RUNTIME_DIRECTORY": "/run/jqd"}


def section(file: str, name: str) -> dict[str, list[str]]:
    """Return setting -> its values in order; a setting may stand more than once."""
    text = (ROOT / "systemd" / file).read_text(encoding="utf-8")
    (body,) = re.findall(rf"^\[{name}\]\n(.*?)(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE)
    found = defaultdict(list)
    for key, value in re.findall(r"^(\w+)=(.*)$", body, re.MULTILINE):
        found[key].append(value)
    return found


def one(file: str, name: str, key: str) -> str:
    (value,) = section(file, name)[key]
    return value


def service(key: str) -> str:
    return one("jqd.service", "Service", key)


def load(environ):
    return load_config(
        {},
        environ,
        is_root=False,
        cwd="/",
        open_files_max=16_384,
        memory_max=(1 << 30, "RAM"),
        default_file="/nonexistent",
    )


# --- the service ------------------------------------------------------------------------------


def test_directories_of_the_unit_are_the_daemons_defaults():
    assert ENVIRON["STATE_DIRECTORY"] == f"/var/lib/{service('StateDirectory')}"
    assert ENVIRON["RUNTIME_DIRECTORY"] == f"/run/{service('RuntimeDirectory')}"
    config = load(ENVIRON)
    assert (config.data_dir, config.unix) == ("/var/lib/jqd", "/run/jqd/jqd.sock")


def test_only_the_group_reaches_the_socket_and_only_the_user_the_data():
    assert (service("StateDirectoryMode"), service("UMask")) == ("0700", "0077")
    # Anybody may look whether there is a socket (jqctl does); its own mode, 0660, says who may connect.
    assert service("RuntimeDirectoryMode") == "0755"
    users = (ROOT / "systemd" / "jqd.sysusers.conf").read_text().splitlines()[-1].split()
    assert users[:2] == ["u", service("User")] == ["u", service("Group")]


def test_service_is_not_restarted_on_what_a_restart_cannot_mend():
    never = {int(code) for code in service("RestartPreventExitStatus").split()}
    assert never == {2, EXIT_DATA_DAMAGED, EXIT_CONFIGURATION}
    assert service("Restart") == "on-failure"


def test_restarts_with_a_delay_never_reach_the_limit_of_starts():
    interval, burst = (
        int(one("jqd.service", "Unit", f"StartLimit{what}")) for what in ("IntervalSec", "Burst")
    )
    assert interval / int(service("RestartSec")) + 1 < burst


def test_start_and_stop_wait_for_what_the_daemon_promises():
    assert int(service("TimeoutStopSec")) > 10
    # What recovery asks for is not less than what it has to begin with.
    assert int(service("TimeoutStartSec")) * 1_000_000 <= daemon._EXTEND_TIMEOUT_US
    assert int(service("TimeoutStartSec")) > 10 * daemon._PROGRESS_S


def test_manager_hears_the_daemon_and_nobody_else():
    assert (service("Type"), service("NotifyAccess")) == ("notify", "main")
    assert int(service("WatchdogSec")) >= 10  # a machine that swaps for a moment is no stuck loop


def test_open_files_are_enough_for_the_default_of_connections():
    assert int(service("LimitNOFILE")) >= CONNECTIONS_DEFAULT + FILES_RESERVED


def test_hardening_is_on():
    switches = (
        "NoNewPrivileges LockPersonality MemoryDenyWriteExecute RemoveIPC "
        "RestrictNamespaces RestrictRealtime RestrictSUIDSGID "
        "PrivateTmp PrivateDevices PrivateUsers PrivateIPC PrivateMounts "
        "ProtectHome ProtectClock ProtectHostname ProtectKernelTunables ProtectKernelModules ProtectKernelLogs "
        "ProtectControlGroups"
    )
    assert {key: service(key) for key in switches.split()} == dict.fromkeys(switches.split(), "yes")


def test_hardening_by_value():
    assert [service(key) for key in ("CapabilityBoundingSet", "AmbientCapabilities")] == ["", ""]
    assert (service("ProtectSystem"), service("ProtectProc"), service("ProcSubset")) == (
        "strict",
        "invisible",
        "pid",
    )
    assert (service("KeyringMode"), service("SystemCallArchitectures")) == ("private", "native")
    filters = section("jqd.service", "Service")["SystemCallFilter"]
    assert filters == ["@system-service", "~@privileged @resources"]


# --- socket activation ------------------------------------------------------------------------


def test_socket_is_the_one_that_the_service_would_open():
    assert one("jqd.socket", "Socket", "ListenStream") == load(ENVIRON).unix
    assert one("jqd.socket", "Socket", "SocketMode") == "0660"
    owner = [one("jqd.socket", "Socket", key) for key in ("SocketUser", "SocketGroup")]
    assert owner == [service("User"), service("Group")]


def test_socket_outlives_the_service():
    assert service("RuntimeDirectoryPreserve") == "yes"


def test_variant_without_a_network_opens_no_address():
    variant = section("socket-activated.conf", "Service")
    (assignment,) = variant["Environment"]
    name, value = assignment.split("=")
    assert name in {setting.variable for setting in SETTINGS}
    assert load({**ENVIRON, name: value}).listen is None
    assert variant["PrivateNetwork"] == ["yes"]
    assert variant["RestrictAddressFamilies"] == ["", "AF_UNIX"]


# --- the page ---------------------------------------------------------------------------------


def test_page_says_of_each_exit_code_whether_it_is_restarted():
    never = {int(code) for code in service("RestartPreventExitStatus").split()}
    rows = dict(re.findall(r"^\| (\d+) \|.*\| (\w+)[^|]*\|$", PAGE, re.MULTILINE))
    codes = {
        2,
        EXIT_DATA_DAMAGED,
        EXIT_CONFIGURATION,
        EXIT_INVARIANT_BROKEN,
        EXIT_IO_ERROR,
        EXIT_DIRECTORY_LOCKED,
    }
    assert {int(code) for code in rows} == {0, *codes}
    for code in codes:
        assert rows[str(code)] == ("no" if code in never else "yes"), code


def test_page_installs_every_file():
    for path in (ROOT / "systemd").iterdir():
        assert f"systemd/{path.name}" in PAGE
