"""The verbs of `jqctl wal` on real directories: what they print, how they end, what they never show."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jqctl.__main__ import run
from jqd.storage.store_file import StoreFile, decode_store_file
from jqd.storage.wal import WalStore
from tests.offline.history import made, put

HISTORY = made(clean=True)
KILLED = made(clean=False)
THIRD = HISTORY.segments[2]


class Jqctl(NamedTuple):
    capture: Any

    def __call__(self, *args: str) -> tuple[int, str, str]:
        code = run(["wal", *args])
        out, err = self.capture.readouterr()
        return code, out, err

    def json(self, *args: str, code: int = 0) -> Any:
        ended, out, _ = self(*args, "-o", "json")
        assert ended == code
        return json.loads(out)

    def dump(self, *args: str) -> list[Any]:
        code, out, err = self("dump", *args)
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def jqctl(capsys) -> Jqctl:
    return Jqctl(capsys)


@pytest.fixture
def log(tmp_path) -> str:
    return put(HISTORY.files, tmp_path / "data")


def damage(log: str) -> None:
    data = bytearray(HISTORY.files[THIRD])
    data[200] ^= 1
    (Path(log) / THIRD).write_bytes(bytes(data))


def content(log: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(log).iterdir() if path.name != "lock"}


# --- stat and verify --------------------------------------------------------------------------


def test_stat_counts_what_is_there(jqctl, log):
    shown = jqctl.json("stat", log)
    store = decode_store_file(HISTORY.files["store"])
    assert isinstance(store, StoreFile)
    last_lsn = HISTORY.records[-1].last_lsn
    assert (shown["store_id"], shown["format"]) == (store.public_id.hex(), 1)
    assert (shown["clean"], shown["running"], shown["problems"]) == (True, False, [])
    assert (shown["first_lsn"], shown["last_lsn"], shown["records"]) == (1, last_lsn, len(HISTORY.records))
    assert shown["jobs"]["ready"] == 6
    assert sum(shown["changes"].values()) == last_lsn
    assert shown["changes"]["JobsDone"] == 2
    assert shown["oldest_at"] == "2023-11-14T22:13:20.000Z"
    assert [each["segment"] for each in shown["segments"]] == [1, 2, 3, 4]
    assert sum(each["bytes"] for each in shown["segments"]) == shown["bytes"]
    code, out, _ = jqctl("stat", log)
    assert code == 0
    assert re.search(r"^clean +yes$", out, re.MULTILINE)
    assert re.search(rf"^4 +{len(HISTORY.files[HISTORY.segments[3]])} +1 +22 +22$", out, re.MULTILINE)


def test_verify_says_ok_in_a_line(jqctl, log):
    assert jqctl("verify", f"{log}/") == (0, f"{log}: ok: LSN 22, 10 jobs, stopped cleanly\n", "")
    assert jqctl.json("verify", log) == {
        "ok": True, "running": False, "clean": True, "last_lsn": 22, "jobs": 10, "torn_bytes": 0, "problems": [],
    }  # fmt: skip


def test_verify_names_file_and_place_and_what_can_be_done(jqctl, log):
    damage(log)
    code, out, err = jqctl("verify", log)
    assert (code, out) == (65, "")
    assert f"jqctl: damaged: {log}/{THIRD}: byte 157: " in err
    assert f"jqctl wal repair {log}" in err
    assert "wal verify" not in err
    shown = jqctl.json("verify", log, code=65)
    (problem,) = shown["problems"]
    assert (problem["kind"], problem["file"], problem["offset"]) == ("damaged", f"{log}/{THIRD}", 157)
    assert shown["ok"] is False
    stat = jqctl.json("stat", log, code=65)
    assert stat["problems"] == shown["problems"]
    assert "bytes" not in stat["segments"][3]


def test_torn_tail_is_a_remark(jqctl, tmp_path):
    last = KILLED.segments[-1]
    log = put({**KILLED.files, last: KILLED.files[last][:-5]}, tmp_path / "data")
    size = len(KILLED.files[last]) - 5 - 68
    code, out, err = jqctl("verify", log)
    assert (code, out) == (0, f"{log}: ok: LSN 21, 10 jobs, not stopped cleanly\n")
    assert f"the last {size} bytes are an unfinished write: the daemon cuts them when it starts" in err
    code, out, err = jqctl("repair", "--accept-loss", log)
    assert (code, out) == (0, "")
    assert "nothing to repair" in err and f"the last {size} bytes" in err


def test_log_of_a_running_daemon_is_shown_and_not_repaired(jqctl, log):
    store = WalStore(log)
    list(store.load())
    assert jqctl("verify", log)[1].endswith("a daemon runs on it\n")
    assert jqctl.json("stat", log)["running"] is True
    assert len(jqctl.dump(log)) == 22
    code, _, err = jqctl("repair", "--accept-loss", log)
    assert code == 75
    assert "in use" in err
    store.close()


@pytest.mark.parametrize("verb", ["stat", "verify", "dump", "repair"])
def test_what_is_no_data_directory_is_refused(jqctl, tmp_path, verb):
    for path, words in ((tmp_path / "x", "No such file"), (tmp_path, "holds no log")):
        code, out, err = jqctl(verb, str(path))
        assert (code, out) == (78, "")
        assert words in err and str(path) in err
    assert list(tmp_path.iterdir()) == []


# --- dump -------------------------------------------------------------------------------------


def test_dump_prints_each_fact_with_place_clocks_and_fields(jqctl, log):
    lines = jqctl.dump(log)
    assert [line["lsn"] for line in lines] == list(range(1, 23))
    by_kind = {line["kind"]: line for line in reversed(lines)}
    first = by_kind["JobsSubmitted"]
    assert first == {
        "lsn": 2,
        "segment": 1,
        "offset": first["offset"],
        "engine_ms": 10_000,
        "wall_ms": 1_700_000_000_000,
        "at": "2023-11-14T22:13:20.000Z",
        "kind": "JobsSubmitted",
        "first_id": "1",
        "options": {
            "queue": "mail", "tenant": "default", "encoding": "json", "priority": 0, "delivery": "at_least_once",
            "dedupe_until": "finished",
        },
        "payloads": [{"payload": {"n": 1}}],
        "principal": "",
    }  # fmt: skip
    assert by_kind["JobsLeased"]["ranges"] == [["1", 1]]
    assert by_kind["JobsLeased"]["token"].isdigit()
    assert by_kind["JobsDone"]["result_base64"] == base64.b64encode(b"sent").decode()
    assert by_kind["JobsRetried"]["jobs"][0]["job_id"] == "2"
    (raw,) = (line for line in lines if line.get("first_id") == "6")
    assert raw["payloads"] == [{"payload_base64": base64.b64encode(b"later").decode()}]
    session = by_kind["SessionOpened"]["session"]
    assert re.fullmatch("[0-9a-f]{16}", session)
    assert by_kind["RequestsAnswered"]["session"] == session
    assert by_kind["RequestsAnswered"]["answers"][0].keys() == {"request_id", "reply_base64"}


def test_dump_takes_every_filter(jqctl, log):
    def lsns(*args: str) -> list[int]:
        return [line["lsn"] for line in jqctl.dump(log, *args)]

    assert lsns("--from-lsn", "20", "--to-lsn", "21") == [20, 21]
    done = lsns("--kind", "JobsDone")
    assert len(done) == 2
    assert lsns("--kind", "JobsDone", "--kind", "JobsDied") != done
    assert lsns("--job", "1", "--kind", "JobsDone") == done[:1]
    assert lsns("--queue", "bulk", "--kind", "JobsDone") == []
    assert len(lsns("--queue", "mail")) > 5


def test_dump_knows_the_kinds(jqctl, log):
    code, out, err = jqctl("dump", log, "--kind", "JobDone")
    assert (code, out) == (2, "")
    assert "'JobDone' is none of" in err and "JobsDone" in err


def test_dump_of_a_damaged_log_ends_with_what_is_wrong(jqctl, log):
    damage(log)
    code, out, err = jqctl("dump", log)
    assert code == 65
    assert [json.loads(line)["lsn"] for line in out.splitlines()] == list(range(1, 16))
    assert f"{THIRD}: byte 157" in err


def test_reader_of_a_dump_may_go_away(log):
    command = f"{sys.executable} -m jqctl wal dump {log}; echo $?"
    done = subprocess.run(
        ["bash", "-c", f"({command} >&2) 2>&1 | cat"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.splitlines()[-1] == "0"
    program = (
        "import os, sys; from jqctl.__main__ import main; r, w = os.pipe(); os.close(r); os.dup2(w, 1);"
        f"sys.argv = ['jqctl', 'wal', 'dump', {log!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stderr) == (141, "")


# --- repair -----------------------------------------------------------------------------------


def test_repair_says_what_goes_and_changes_nothing(jqctl, log):
    damage(log)
    before = content(log)
    code, out, err = jqctl("repair", log)
    assert code == 65
    lines = [line.split() for line in out.splitlines()]
    assert " ".join(lines[0]) == "LSN 16 to 22 go: 890 bytes"
    assert " ".join(lines[1]) == "LSN 16 to 16 cannot be read: what they did to jobs is not listed"
    assert ["7", "1", "mail", "done", "ready"] in lines
    assert ["8-10", "3", "unknown", "unknown", "gone"] in lines
    assert "nothing was changed: --accept-loss does it" in err
    assert content(log) == before


def test_repair_does_what_it_said(jqctl, log):
    damage(log)
    said = jqctl.json("repair", log, code=65)
    done = jqctl.json("repair", log, "--accept-loss")
    assert (said["ok"], said["done"], said["copies"]) == (False, False, [])
    assert (done["ok"], done["done"]) == (True, True)
    assert {name: said[name] for name in ("loss", "steps", "problems")} == {
        name: done[name] for name in ("loss", "steps", "problems")
    }
    assert done["loss"]["jobs"][-1] == {
        "first_id": "11", "count": 1, "queue": "mail", "was": "ready", "becomes": "gone",
    }  # fmt: skip
    assert [step["step"] for step in done["steps"]] == ["keep", "keep", "keep", "skip", "write", "cut"]
    assert done["steps"][3] == {"step": "skip", "name": "0000000000000004.wal"}
    # Ids 1 to 11 are named, and a record that cannot be read may have named 10,000 jobs.
    assert done["loss"]["next_id"] == "10012"
    assert [Path(copy).read_bytes() != b"" for copy in done["copies"]] == [True] * 3
    assert jqctl.json("verify", log)["last_lsn"] == 16
    code, out, err = jqctl("repair", "--accept-loss", log)
    assert (code, out, err) == (0, "", f"{log}: nothing to repair: a daemon starts on it\n")


def test_repair_tells_that_it_is_done_where_the_copies_are_and_the_new_id(jqctl, log):
    (Path(log) / "store").write_bytes(b"?")
    code, out, err = jqctl("repair", "--accept-loss", log)
    assert code == 0
    assert out == "no LSN is known to go, but the end of the log cannot be seen\n"
    new = jqctl.json("stat", log)["store_id"]
    assert err.splitlines() == [
        f"kept: {log}/quarantine/store-0.cut",
        f"the store has a new id: {new}",
        f"{log}: repaired: a daemon starts on it",
    ]


# --- all of them ------------------------------------------------------------------------------


def test_secret_id_of_the_store_and_ids_of_sessions_are_never_shown(jqctl, log):
    store = decode_store_file(HISTORY.files["store"])
    assert isinstance(store, StoreFile)
    secrets = [store.store_id, b"s" * 16]
    said = ""
    for _ in range(2):
        for verb in ("stat", "verify", "dump", "repair"):
            for form in ((), ("-o", "json")) if verb != "dump" else ((),):
                said += "".join(jqctl(verb, log, *form)[1:])
        damage(log)
    assert len(said) > 10_000
    for secret in secrets:
        for shown in (secret.hex(), base64.b64encode(secret).decode()[:20], str(secret)[2:-1], repr(secret)):
            assert shown not in said


@pytest.mark.parametrize("verb", ["stat", "verify", "dump", "repair"])
def test_install_without_the_extra_says_what_is_missing(verb, log):
    program = "import sys; sys.modules['crc32c'] = None; from jqctl.__main__ import main; main()"
    options = ["--kind", "JobsDone"] if verb == "dump" else []
    done = subprocess.run(
        [sys.executable, "-c", program, "wal", verb, log, *options],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "jqctl: wal needs the package crc32c: pip install 'jqd[server]'\n"
