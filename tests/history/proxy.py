"""A proxy that does to connections what networks do: cuts them, at any byte, and delivers late.

    python -m tests.history.proxy SEED /path/of/the/daemons/socket

The first line of its output is its port, the last one a JSON object: how often each fate struck.

Each connection gets its fate when it is made, from the seed:

    good        nothing is done to it
    cut         after so many bytes one way both ends are reset; what was on its way is lost or not
    deaf        requests go through, replies do not; after a while both ends are reset: carried out, and not told
    zombie      the client's end is reset, and what it had sent last arrives at the daemon later, when the client has
                long come back over another connection and asked again

It ends when its standard input does.

Knows:         bytes, one way and the other.
Must not know: frames, the protocol.
"""

import asyncio
import json
import random
import socket
import struct
import sys
from collections import Counter
from typing import Any, Final

_CHUNK_BYTES: Final = 64 << 10
_FATES: Final = {"good": 10, "cut up": 20, "cut down": 20, "deaf": 10, "zombie": 40}
# Of one way of a connection until fate strikes, on average: some 30 requests.
_BUDGET_BYTES: Final = 8_000
# How late a zombie's last bytes come, and for how long a deaf connection is kept.
_LATE_S: Final = (0.01, 0.4)


class Proxy:
    """See the file's card."""

    def __init__(self, seed: str, path: str) -> None:
        self.random = random.Random(seed)
        self.path = path
        self.tasks: set[asyncio.Task[None]] = set()
        self.struck: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self.path)
        except OSError:
            reset(writer)
            return
        (fate,) = self.random.choices(list(_FATES), list(_FATES.values()))
        budget = int(self.random.expovariate(1 / _BUDGET_BYTES))
        way = Way(fate, self.random.uniform(*_LATE_S), self.struck)
        up = asyncio.create_task(way.carry(reader, server_writer, writer, budget, up=True))
        down = asyncio.create_task(way.carry(server_reader, writer, server_writer, budget, up=False))
        for task in (up, down):
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)


class Way:
    """Both ways of one connection."""

    def __init__(self, fate: str, late_s: float, struck: "Counter[str]") -> None:
        self.fate = fate
        self.late_s = late_s
        self.struck = struck

    async def carry(
        self,
        source: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        budget: int,
        *,
        up: bool,
    ) -> None:
        """Carry bytes one way until an end is reached, or fate strikes."""
        try:
            while data := await source.read(_CHUNK_BYTES):
                if self.fate == "zombie" and to.is_closing():
                    continue  # the client is gone, and the daemon must not learn of it yet
                budget -= len(data)
                if budget >= 0 or self.fate == "good":
                    to.write(data)
                elif self.fate == ("cut up" if up else "cut down"):
                    self.struck["connections cut"] += 1
                    to.write(data[: budget + len(data)])
                    reset(to)
                    reset(back)
                    return
                elif self.fate == "zombie" and up:
                    self.struck["requests that came late"] += 1
                    reset(back)
                    asyncio.get_running_loop().call_later(self.late_s, deliver_late, to, data)
                    return
                elif self.fate == "deaf" and not up:
                    self.struck["connections without replies"] += 1
                    loop = asyncio.get_running_loop()
                    loop.call_later(self.late_s, reset, to)
                    loop.call_later(self.late_s, reset, back)
                    return
                else:
                    to.write(data)
                await to.drain()
            to.close()
        except OSError:
            reset(to)
            reset(back)


def deliver_late(to: asyncio.StreamWriter, data: bytes) -> None:
    to.write(data)
    to.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the other side learns of it at once."""
    sock: Any = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() != -1 and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main(seed: str, path: str) -> None:
    """Serve until nobody needs it."""
    proxy = Proxy(seed, path)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    server.close()
    print(json.dumps(proxy.struck), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
