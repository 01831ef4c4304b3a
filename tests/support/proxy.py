"""A line between client and daemon that breaks when a test says so.

proxy = Proxy(daemon.socket_path)   a client of proxy.url speaks to the daemon
proxy.cut()                         both ends of all lines see a reset
proxy.freeze()                      nothing passes any more over the lines that there are, and no end sees anything
"""

import asyncio
import threading

from tests.support.until import PATIENCE_S


class Proxy:
    """Listens at `url` and passes on to a unix socket; see the file's card."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._frozen: list[asyncio.StreamWriter] = []  # kept, so that nobody sees them end
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.url = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    def _run(self) -> None:
        self._loop.run_until_complete(self._listen())
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for each in left:
            each.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left))
        self._loop.run_until_complete(self._server.wait_closed())
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.url = f"jqd://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._ready.set()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._target)
        ends = {writer, back}
        pumps = {
            asyncio.ensure_future(self._pump(reader, back)),
            asyncio.ensure_future(self._pump(there, writer)),
        }
        self._writers |= ends
        self._pumps |= pumps
        await asyncio.gather(*pumps, return_exceptions=True)
        self._pumps -= pumps
        self._writers -= ends
        if ends.isdisjoint(self._frozen):
            for each in ends:
                each.close()

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self._abort)

    def freeze(self) -> None:
        """Pass nothing more on over the lines that there are, in silence; new ones work."""
        self._loop.call_soon_threadsafe(self._freeze)

    def _freeze(self) -> None:
        self._frozen += self._writers
        for each in self._pumps:
            each.cancel()

    def _abort(self) -> None:
        for each in [*self._writers, *self._frozen]:
            each.transport.abort()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._abort)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
