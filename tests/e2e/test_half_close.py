"""Send, close the sending side, read to the end: what a shell pipe into a socket does."""

import socket

import pytest

from tests.support.daemon import Daemon
from tests.support.wire import answers_in, frame, hello, request

pytestmark = pytest.mark.e2e


@pytest.fixture
def daemon(tmp_path):
    with Daemon(tmp_path / "data") as started:
        yield started


def said_until_the_end(daemon, data):
    """Send all of `data`, close the sending side, and return the answers up to the end of the stream."""
    with socket.create_connection(daemon.address, timeout=30) as wire:
        wire.sendall(data)
        wire.shutdown(socket.SHUT_WR)
        heard = b""
        while part := wire.recv(1 << 16):
            heard += part
    return answers_in(heard)


def test_all_that_was_sent_is_answered_and_then_the_connection_ends(daemon):
    submits = b"".join(request(number, "submit", payload=b"x" * 100) for number in range(2, 3_002))
    answers = said_until_the_end(daemon, hello(1) + submits)
    assert [answer.request_id for answer in answers] == list(range(1, 3_002))
    assert {answer.status for answer in answers} == {"ok"}


def test_parked_lease_ends_with_the_sending_side(daemon):
    answers = said_until_the_end(daemon, hello(1) + request(2, "lease", wait_ms=30_000))
    assert [answer.request_id for answer in answers] == [1]
    with daemon.client() as wire:
        assert wire.ask("stats")["parked_count"] == 0


def test_half_a_frame_at_the_end_is_dropped(daemon):
    answers = said_until_the_end(daemon, hello(1) + request(2, "ping") + frame([3, "ping", {}])[:-1])
    assert [answer.request_id for answer in answers] == [1, 2]
