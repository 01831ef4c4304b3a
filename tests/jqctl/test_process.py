"""What the kernel says about a process, read from a copy of /proc that the test wrote, or of this one."""

import os

import pytest

from jqctl import process


@pytest.fixture
def proc(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_PROC", tmp_path)

    def write(pid: int, stat: str = "", cmdline: bytes = b"") -> None:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(stat)
        (tmp_path / str(pid) / "cmdline").write_bytes(cmdline)

    return write


def test_time_is_read_behind_a_command_with_blanks_and_brackets(proc):
    fields = " ".join(map(str, range(3, 53)))  # the number of each field in proc(5), from the third on
    proc(7, f"7 (a ) 1 2 (b) {fields}\n")
    assert process.cpu(7) == (14 * process.step_s(), 15 * process.step_s())


def test_own_time_rises():
    before = process.cpu(os.getpid())
    times = os.times()
    assert abs(sum(before) - times.user - times.system) < 1
    assert before.user_s > 0


def test_no_such_process_is_said(proc):
    with pytest.raises(process.Unknown, match=r"pid = 9: .*/9/stat: No such file or directory"):
        process.cpu(9)


@pytest.mark.parametrize(
    "cmdline",
    [b"/usr/bin/python3\0-m\0jqd\0--listen\0x\0", b"/opt/venv/bin/python\0/opt/venv/bin/jqd\0", b"jqd\0"],
)
def test_a_daemon_is_known_by_its_command_line(proc, cmdline):
    proc(7, cmdline=cmdline)
    process.check_daemon(7)


@pytest.mark.parametrize(
    "cmdline", [b"/usr/bin/python3\0-m\0jqctl\0", b"/sbin/init\0", b"", b"vi\0/etc/jqd.toml\0"]
)
def test_another_process_with_the_pid_is_not_taken_for_the_daemon(proc, cmdline):
    proc(7, cmdline=cmdline)
    with pytest.raises(process.Unknown, match="pid = 7 is no jqd here"):
        process.check_daemon(7)


def test_a_pid_of_elsewhere_is_said(proc):
    with pytest.raises(process.Unknown, match="pid = 8 is not here"):
        process.check_daemon(8)


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("unix:///run/jqd/jqd.sock", True),
        ("jqd://127.0.0.1:7717", True),
        ("jqd://[::1]:7717", True),
        ("jqd://localhost", True),
        ("jqd://10.0.0.1:7717", False),
        ("jqd://queue.example:7717", False),
    ],
)
def test_an_address_says_whether_the_daemon_is_on_this_machine(url, near):
    assert process.is_near(url) is near
