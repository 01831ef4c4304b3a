"""README.md says what is so: its programs and commands are run, its codes, links and claims are looked up."""

import base64
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jqd import errors
from jqd.core import model
from jqd.errors import WIRE_ERRORS
from jqd.server.config import SETTINGS
from tests.support.daemon import ROOT, Daemon, environment

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BIN = Path(sys.executable).parent
EXIT_CODES = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
CODES = {*WIRE_ERRORS, errors.ConnectionLost.code, errors.RequestTimeout.code}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    return re.split(r"^## ", README.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of the one table in a text by their first column."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]
    return {first: rest for first, *rest in cells if not first.startswith("---")}


# --- what is run --------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path):
    with Daemon(tmp_path / "data", "--unix", "off") as daemon:
        host, port = daemon.address
        yield f"jqd://{host}:{port}"


def run(*words: str, url: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment({"JQD_URL": url}), timeout=30, cwd=ROOT
    )
    assert (done.returncode, done.stderr) in ((0, ""), (0, "no such jobs\n")), words
    return done.stdout


@pytest.mark.e2e
@pytest.mark.parametrize("program", blocks("python")[:2], ids=["asyncio", "blocking"])
def test_program_does_what_it_shows(url, tmp_path, program):
    assert program.count("jqd://127.0.0.1:7717") == 1
    path = tmp_path / "program.py"
    path.write_text(program.replace("jqd://127.0.0.1:7717", url))
    assert run(sys.executable, str(path), url=url) == '1 1 b\'{"to":"ada@example.org"}\'\n'
    job = json.loads(run(str(BIN / "jqctl"), "job", "1", "-o", "json", url=url))
    assert (job["state"], base64.b64decode(job["result_base64"])) == ("done", b"sent")


@pytest.mark.e2e
def test_program_with_a_task_submits_a_job(url, tmp_path):
    (_, _, program) = blocks("python")
    path = tmp_path / "shop.py"
    path.write_text(program.replace("jqd://127.0.0.1:7717", url))
    run(sys.executable, str(path), url=url)
    job = json.loads(run(str(BIN / "jqctl"), "job", "1", "-o", "json", url=url))
    assert (job["state"], job["task"], job["queue"], job["max_retries"]) == ("ready", "send", "emails", 5)


@pytest.mark.e2e
def test_shell_lines_work_in_their_order(url):
    jqctl = str(BIN / "jqctl")
    (text,) = (block for block in blocks("") if "jqctl submit" in block)
    held: dict[str, str] = {}
    for line in text.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        assert words[0] == ".venv/bin/jqctl"
        if "JOB_ID" in words and not held:  # "instead": with another job
            run(jqctl, "submit", "notes", "another", url=url)
            held = json.loads(run(jqctl, "lease", "notes", "-o", "json", url=url))
        words = [{"JOB_ID": held.get("job_id"), "TOKEN": held.get("token")}.get(word, word) for word in words]
        output = run(jqctl, *words[1:], url=url)
        if words[1] == "lease":
            held = json.loads(output)
        elif words[1] in ("ack", "fail"):
            held = {}
    assert len(text.splitlines()) == 7


def test_there_are_two_commands_to_begin_with():
    first = blocks("")[0].splitlines()
    assert [line.partition("#")[0].strip() for line in first] == ["make demo", "make test"]


# --- what is looked up --------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)", text):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor[1:] in slugs, anchor


def test_flags_and_settings_exist():
    flags = {setting.flag for setting in SETTINGS} | {"--print-config"}
    jqctl = {
        "--delay",
        "--error",
        "--help",
        "--lease",
        "--meta",
        "--only",
        "--priority",
        "--result",
        "--state",
        "--wait",
        "--watch",
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= flags | jqctl
    assert set(re.findall(r"\b[a-z]+_(?:bytes|ms|dir|format|level)\b", README)) <= {
        *(setting.key for setting in SETTINGS),
        "retry_after_ms",
    }


# Row of "What happens when" -> tests that show it.
SHOWN = {
    "the disk is nearly full": "e2e/test_disk.py::test_full_disk_refuses_new_jobs_finishes_old_ones_and_goes_on_by_itself",
    "the disk is full": "e2e/test_disk.py::test_reserve_is_used_when_another_program_takes_the_rest "
    "e2e/test_disk.py::test_disk_that_stays_full_ends_the_daemon_and_loses_nothing_that_was_acknowledged "
    "e2e/test_disk.py::test_full_disk_at_the_start_is_said",
    "the disk is slow": "e2e/test_disk.py::test_slow_disk_is_said_and_costs_nobody_a_lease "
    "server/test_driver.py::test_full_commit_queue_is_busy_for_what_changes_something",
    "daemon or machine stand still": "e2e/test_disk.py::test_disk_that_stands_still_for_longer_than_a_lease_costs_nobody_a_lease",
    "a write or sync fails": "e2e/test_disk.py::test_failed_call_is_the_last_one_and_nothing_is_acknowledged_by_it "
    "e2e/test_disk.py::test_failed_sync_leaves_every_client_without_an_answer",
    "the daemon is killed, or breaks": "e2e/test_kill.py::test_nothing_that_was_said_is_lost_or_undone_by_kills "
    "e2e/test_daemon.py::test_torn_tail_is_cut_and_kept",
    "it is restarted": "e2e/test_daemon.py::test_stop_delivers_the_replies_of_what_it_took "
    "core/test_restart.py::test_live_lease_has_the_lesser_of_its_time_and_half_a_minute_left",
    "the wall clock jumps forward": "core/test_time.py::test_date_is_reached_when_the_wall_clock_is_set_forward "
    "core/test_time.py::test_durations_do_not_care_for_the_wall_clock",
    "the wall clock jumps back": "core/test_time.py::test_date_is_never_early_when_the_wall_clock_is_set_back "
    "server/test_daemon.py::test_clock_far_before_the_newest_record_is_refused",
    "a worker is killed": "core/test_retries.py::test_first_crash_is_ready_at_once_later_ones_wait_for_the_backoff "
    "core/test_retries.py::test_default_is_five_crashes",
    "a worker stalls past its lease": "core/test_held.py::test_stale_token_is_refused_by",
    "a reply to a producer is lost": "e2e/test_sync_client.py::test_each_submit_is_carried_out_once_over_kills "
    "client/test_sync.py::test_it_gives_up_and_says_what_is_unknown",
    "a client cannot reconnect": "core/test_sessions.py::test_without_a_session_a_retry_is_a_new_request",
    "the machine loses power": "storage/test_wal_crash.py::",
    "another daemon has the directory": "e2e/test_daemon.py::test_second_daemon_on_a_directory_is_refused_and_touches_nothing",
    "a snapshot is damaged": "e2e/test_daemon.py::test_damaged_snapshot_is_replaced_by_the_older_one",
    "the log is damaged": "e2e/test_daemon.py::test_damaged_log_is_refused_and_left_alone",
    "memory runs short": "e2e/test_memory.py::test_it_fills_refuses_starts_again_and_empties "
    "e2e/test_memory.py::test_beyond_the_hard_limit_it_takes_no_connection_until_there_is_room",
}


def test_what_happens_when_is_shown_by_tests():
    assert list(rows(section("What happens when"))) == list(SHOWN)
    for shown in SHOWN.values():
        for node in shown.split():
            path, _, name = node.partition("::")
            assert f"def {name or 'test_'}" in (ROOT / "tests" / path).read_text(encoding="utf-8"), node


def test_codes_of_what_happens_when_exist():
    text = section("What happens when")
    assert {int(code) for code in re.findall(r"exit (\d+)", text)} == {0, *EXIT_CODES}
    words = set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", text))
    # What the daemon logs.
    events = {
        "failed",
        "memory_full",
        "memory_short",
        "slow_sync",
        "snapshot_damaged",
        "stood_still",
        "sync_waits",
        "torn_tail_cut",
    }
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "jqd" / "server").glob("*.py"))
    assert all(f'"{event}"' in sources for event in events)
    others = {
        "memory_hard_bytes",
        "memory_soft_bytes",
        "commit_queue_bytes",
        "low_space_bytes",
        "retry_after_ms",
        "run_at",
        "crashes",
        "dead",
        "timeout",
    }
    assert words - events - others == words & CODES
    assert words & CODES == {
        *("busy", "draining", "lease_lost", "connection_lost", "request_timeout", "storage_full"),
        "overloaded",
    }


def test_numbers_are_those_of_the_code():
    assert model.LEASE_MS_DEFAULT == model.RESTART_GRACE_MS == 30_000
    assert model.MAX_CRASHES_DEFAULT + 1 == 6
    assert model.JOBS_PER_REQUEST_MAX == 10_000
    assert "dead` at the sixth" in README and "up to 10,000 jobs in one request" in README


def test_names_of_other_systems_are_mapped_to_settings_that_exist():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = rows(page.partition("## What other systems call it")[2].partition("\n## ")[0])
    assert [name.strip("`") for name in table] == [
        *("PORT", "WAL_DIR", "LEASE_DURATION", "LEASE_CHECK_INTERVAL", "BACKEND", "REDIS_URL", "POSTGRES_DSN")
    ]
    here = {cell for cell, *_ in table.values() if cell.startswith("`")}
    assert {cell.strip("`") for cell in here} <= {setting.key for setting in SETTINGS}
    assert {cell for cell, *_ in table.values()} - here == {"no setting", "not yet"}
