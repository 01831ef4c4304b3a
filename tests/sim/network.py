"""A simulated TCP connection: bytes that are under way in each direction, and the server's end of it.

Knows:         order within a connection, back-pressure, that either end may go while bytes are under way.
Must not know: frames, who reads what.

    client                      up ->                       server
    to_server, not arrived yet          deliver_up(count)   protocol.data_received
    deliver_down(count) -> bytes        <- down             transport.write, until the peer has taken it

A server's death leaves what it has written in the socket: it may still arrive. So do the bytes of a client that
has gone (`abandon`): the server hears them later, from a connection that nobody listens to any more.
"""

from jqd.server.driver import Connection
from tests.sim.loop import SimLoop

# What the kernel takes of a peer that does not read, before the transport's own buffer fills.
SOCKET_BYTES = 4 << 10


class Stream:
    """One connection, and its server's end: what `driver.Connection` asks of an asyncio transport."""

    def __init__(self, loop: SimLoop, connection: Connection) -> None:
        self.connection = connection
        self.up = bytearray()
        self.down = bytearray()
        self.is_lost = False  # the server was told that it is over, or is dead
        self.client_is_gone = False
        self.half_closed = False
        self._loop = loop
        self._reading = True
        self._closing = False
        self._high = 64 << 10
        self.is_stalled = False  # the server has been told to wait until its client reads
        connection.connection_made(self)  # type: ignore[arg-type]

    # --- what a transport is asked ------------------------------------------------------------

    def set_write_buffer_limits(self, high: int) -> None:
        self._high = high

    def get_write_buffer_size(self) -> int:
        return max(0, len(self.down) - SOCKET_BYTES)

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes) -> None:
        assert data and not self._closing
        if self.client_is_gone:
            return
        self.down += data
        if not self.is_stalled and self.get_write_buffer_size() > self._high:
            self.is_stalled = True
            self.connection.pause_writing()

    def pause_reading(self) -> None:
        assert self._reading
        self._reading = False

    def resume_reading(self) -> None:
        assert not self._reading
        self._reading = True

    def close(self) -> None:
        self._closing = True
        if not self.get_write_buffer_size():
            self._loop.call_soon(self.lose)

    def abort(self) -> None:
        self._closing = True
        self.down.clear()
        self._loop.call_soon(self.lose)

    # --- what happens to it -------------------------------------------------------------------

    def lose(self) -> None:
        """The server learns that the connection is over."""
        if not self.is_lost:
            self.is_lost = self._closing = True
            self.connection.connection_lost(None)

    def abandon(self) -> None:
        """The client has gone, and the server does not know."""
        self.client_is_gone = True
        self.down.clear()
        self._drained()

    def die(self) -> None:
        """The daemon has ended: nothing is written any more, and nobody there hears anything."""
        self.is_lost = self._closing = True
        self.up.clear()

    def half_close(self) -> None:
        """The client sends nothing more, and still reads."""
        self.half_closed = True
        if not self.connection.eof_received():
            self.close()

    def deliver_up(self, count: int) -> bool:
        """Let bytes arrive at the server, if it reads; tell whether any did."""
        if self.is_lost or self._closing or self.half_closed or not self._reading or not self.up:
            return False
        data = bytes(self.up[:count])
        del self.up[:count]
        self.connection.data_received(data)
        return True

    def deliver_down(self, count: int) -> bytes:
        """Return bytes that arrive at the client."""
        data = bytes(self.down[:count])
        del self.down[:count]
        if not self.is_lost:
            self._drained()
        return data

    def _drained(self) -> None:
        if self.is_stalled and self.get_write_buffer_size() <= self._high // 4:
            self.is_stalled = False
            self.connection.resume_writing()
        if self._closing and not self.get_write_buffer_size():
            self._loop.call_soon(self.lose)
