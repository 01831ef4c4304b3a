"""Whom the daemon lets in by which socket; tests/e2e/test_systemd.py has the process."""

import asyncio
import contextlib
import errno
import os
import socket
import stat

import pytest

from jqd.errors import ConfigurationError
from jqd.server import listeners
from jqd.server.config import Config

PID = 4_242


def config(**settings):
    return Config(**{"data_dir": "/data", "listen": None, "unix": None, "max_connections": 10, **settings})


@contextlib.contextmanager
def passed_at_first(one, monkeypatch):
    """Let a socket of the test's stand for the first passed descriptor."""
    number = os.dup(one.fileno())
    monkeypatch.setattr(listeners, "PASSED_FD_FIRST", number)
    try:
        yield number
    finally:
        with contextlib.suppress(OSError):
            os.close(number)


def take(count="1", pid=PID):
    environ = {"LISTEN_FDS": count, "LISTEN_PID": str(pid), "LISTEN_FDNAMES": "jqd.socket", "HOME": "/root"}
    try:
        return listeners.take_passed_sockets(environ, PID)
    finally:
        assert environ == {"HOME": "/root"}, "the next process is not to take them"


def listening(family=socket.AF_INET, address=("127.0.0.1", 0)):
    one = socket.socket(family)
    one.bind(address)
    one.listen()
    return one


# --- passed sockets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, None), (socket.AF_UNIX, "")]
)
def test_listening_stream_socket_is_taken_and_not_inherited(monkeypatch, tmp_path, family, address):
    # "" makes the kernel choose an abstract name
    one = listening(family, str(tmp_path / "s") if address is None else address)
    with one, passed_at_first(one, monkeypatch) as number:
        os.set_inheritable(number, True)
        (taken,) = take()
        with taken:
            assert (taken.fileno(), taken.getsockname()) == (number, one.getsockname())
            assert not os.get_inheritable(number)


@pytest.mark.parametrize(("count", "pid"), [("1", PID + 1), ("0", PID), ("", PID)])
def test_what_is_passed_to_another_process_or_not_at_all_is_left(monkeypatch, count, pid):
    with listening() as one, passed_at_first(one, monkeypatch) as number:
        assert take(count, pid) == []
        os.fstat(number)


@pytest.mark.parametrize("count", ["-1", "x", "1.0", "17", "9" * 30, "\u0661"])
def test_count_that_is_none_is_refused(count):
    with pytest.raises(ConfigurationError, match="LISTEN_FDS"):
        take(count)


def datagram():
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def sequential():
    one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # this kind listens, too
    one.bind("")
    one.listen()
    return one


def connected():
    one, other = socket.socketpair()
    other.close()
    return one


def unbound():
    return socket.socket()


def everywhere():
    return listening(address=("0.0.0.0", 0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (datagram, "stream socket"),
        (sequential, "must be a listening stream socket"),
        (connected, "Accept=no"),
        (unbound, "does not listen"),
        (everywhere, r"jqd://0\.0\.0\.0:\d+: only loopback"),
    ],
)
def test_unfit_socket_is_refused_as_a_setting_would_be(monkeypatch, make, words):
    with make() as one, passed_at_first(one, monkeypatch) as number:
        with pytest.raises(ConfigurationError, match=words) as refusal:
            take()
        assert f"passed socket {number}" in str(refusal.value)
        assert refusal.value.exit_code == 78


def test_passed_file_is_refused(monkeypatch):
    refused = pytest.raises(ConfigurationError, match=os.strerror(errno.ENOTSOCK))
    with open(os.devnull) as file, passed_at_first(file, monkeypatch), refused:
        take()


def test_descriptor_that_is_not_open_is_refused(monkeypatch):
    with listening() as one, passed_at_first(one, monkeypatch) as number:
        os.close(number)
        with pytest.raises(ConfigurationError, match=os.strerror(errno.EBADF)):
            take()


# --- opening ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def opened(settings, passed=(), runtime_directories=()):
    served = await listeners.open_listeners(asyncio.Protocol, settings, passed, runtime_directories)
    try:
        yield served
    finally:
        served.close()


async def test_passed_socket_stands_for_the_setting_of_its_family(tmp_path):
    with listening(socket.AF_UNIX, str(tmp_path / "passed")) as unix, listening() as tcp:
        port = tcp.getsockname()[1]
        settings = config(listen=("127.0.0.1", 0), unix=str(tmp_path / "own"))
        async with opened(settings, [unix]) as served:
            own_tcp, given = served.addresses
            assert given == f"unix://{tmp_path}/passed" and own_tcp.startswith("jqd://127.0.0.1:")
            assert served.own_path is None
        async with opened(settings, [tcp]) as served:
            assert served.addresses == [f"jqd://127.0.0.1:{port}", f"unix://{tmp_path}/own"]


@pytest.mark.parametrize(("shared", "mode"), [(True, 0o660), (False, 0o600)])
@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_socket_has_its_mode_from_its_first_moment(monkeypatch, tmp_path, shared, mode, umask):
    path = tmp_path / "jqd.sock"
    modes = []
    bind = socket.socket.bind

    def watched(self, address):
        bind(self, address)
        modes.append(stat.S_IMODE(path.stat().st_mode))

    monkeypatch.setattr(socket.socket, "bind", watched)
    before = os.umask(umask)
    try:
        async with opened(
            config(unix=str(path)), runtime_directories={str(tmp_path)} if shared else {"/run/other"}
        ):
            modes.append(stat.S_IMODE(path.stat().st_mode))
            assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert modes == [mode, mode]


async def test_own_socket_is_removed_while_it_is_served(monkeypatch, tmp_path):
    path = tmp_path / "s"
    served = await listeners.open_listeners(asyncio.Protocol, config(unix=str(path)), (), ())
    existed = []
    (server,) = served.servers
    close = server.close
    monkeypatch.setattr(
        served, "servers", [type("Server", (), {"close": lambda self: existed.append(path.exists())})()]
    )
    served.close()
    close()
    assert existed == [False]


async def test_port_that_is_taken_is_refused_in_the_words_of_the_system():
    with listening() as one:
        port = one.getsockname()[1]
        refused = pytest.raises(
            ConfigurationError, match=f"^listen = 127.0.0.1:{port}: {os.strerror(errno.EADDRINUSE)}$"
        )
        with refused:
            async with opened(config(listen=("127.0.0.1", port))):
                pass


async def test_socket_of_a_directory_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        await listeners.open_listeners(asyncio.Protocol, config(unix=str(tmp_path / "no" / "s")), (), ())


# --- what an earlier daemon left ----------------------------------------------------------------


def test_socket_that_nobody_serves_is_removed(tmp_path):
    path = str(tmp_path / "s")
    listeners.remove_stale_socket(path)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    listeners.remove_stale_socket(path)
    assert not os.path.exists(path)


def test_socket_that_somebody_serves_stays(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(path)
        served.listen()
        with pytest.raises(ConfigurationError, match="another process serves this socket"):
            listeners.remove_stale_socket(path)
    assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_stays(tmp_path, kind):
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("mine")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="no socket"):
        listeners.remove_stale_socket(str(path))
    assert path.is_symlink() or path.exists()
