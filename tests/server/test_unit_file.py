"""The shipped unit says what the daemon takes from it."""

import configparser
from pathlib import Path

from jqd.errors import EXIT_CONFIGURATION, EXIT_DATA_DAMAGED, EXIT_DIRECTORY_LOCKED, EXIT_IO_ERROR
from jqd.server.config import load_config

UNIT = Path(__file__).parents[2] / "systemd" / "jqd.service"


def service() -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=True)
    parser.read(UNIT)
    return parser["Service"]


def test_directories_of_the_unit_are_the_daemons_defaults():
    unit = service()
    environ = {
        "STATE_DIRECTORY": f"/var/lib/{unit['StateDirectory']}",
        "RUNTIME_DIRECTORY": f"/run/{unit['RuntimeDirectory']}",
    }
    config = load_config(
        {}, environ, is_root=False, cwd="/", open_files_max=1_024, default_file="/nonexistent"
    )
    assert (config.data_dir, config.unix) == ("/var/lib/jqd", "/run/jqd/jqd.sock")


def test_service_is_not_restarted_on_what_a_restart_cannot_mend():
    never = {int(code) for code in service()["RestartPreventExitStatus"].split()}
    assert {EXIT_DATA_DAMAGED, EXIT_CONFIGURATION} <= never
    assert not {EXIT_IO_ERROR, EXIT_DIRECTORY_LOCKED} & never


def test_stop_waits_for_the_drain():
    assert int(service()["TimeoutStopSec"]) > 10
