"""jqd's driver for a harness that measures job queues side by side on one machine.

Knows:         the harness's interface (Peer, RawConn), how the daemon is started there.
Must not know: what is measured.

The harness loads this file by its path (JQD_DRIVER=.../tests/bench/peer.py) with an interpreter of its own, which
needs msgspec and uvloop; the daemon runs with the project's .venv. Nothing in jqd imports this file.

    sync, interval   no session in hello: no reply is remembered, as no peer does
    sync-session     each connection says a session, as jqd's clients do: a retried request is answered once
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, ClassVar, Final

# The harness's own package; its path is there when the harness loads this file.
from bench.core import Peer, RawConn  # type: ignore[import-not-found]

ROOT: Final = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.bench import wire  # noqa: E402

PORT: Final = 21390
PYTHON: Final = ROOT / ".venv" / "bin" / "python"
WAIT_MS: Final = 30_000


class Conn(RawConn):  # type: ignore[misc]
    """One connection; a reply is the body of its frame.

    Args:
        with_session: say a session in hello; then every request needs an id of its own.
    """

    lease = wire.request("lease", {"count": 1})
    lease_wait = wire.request("lease", {"count": 1, "wait_ms": WAIT_MS})

    def __init__(self, *, with_session: bool) -> None:
        super().__init__()
        self.rest = b""
        self._session = os.urandom(16) if with_session else None
        self._id = wire.FIRST_ID

    async def hello(self) -> None:
        greeted = asyncio.get_running_loop().create_future()
        self.step = greeted.set_result
        self.tr.write(wire.hello(self._session))
        wire.check_all(await asyncio.wait_for(greeted, 10))

    def _numbered(self, frame: bytes) -> bytes:
        if self._session is None:
            return frame
        self._id += 1
        return wire.renumbered(frame, self._id)

    def parse(self, data: bytes) -> list[bytes]:
        bodies, self.rest = wire.cut(self.rest + data if self.rest else data)
        return bodies

    # --- submit -------------------------------------------------------------------------------

    def put(self, body: bytes) -> bytes:
        return self._numbered(
            _SUBMIT[0] + body if len(body) == 100 else wire.request("submit", {"payload": body})
        )

    def put_bulk(self, bodies: list[bytes]) -> bytes:
        return self._numbered(wire.request("submit_many", {"groups": [{"payloads": bodies}]}))

    def is_put(self, reply: bytes) -> bool:
        return wire.is_ok(reply)

    # --- lease and ack: many jobs are one request ---------------------------------------------

    def _leases(self) -> int:
        want: int = self.work.take(self.batch)
        if want:
            self.want = want
            self.step = self._lease_step
            self._ask()
        return want

    def _ask(self) -> None:
        waits = self.req is self.lease_wait
        if self.want == 1:
            frame = self.req
        else:
            args = {"count": self.want, "wait_ms": WAIT_MS} if waits else {"count": self.want}
            frame = wire.request("lease", args)
        self.tr.write(self._numbered(frame))

    def _lease_step(self, replies: list[bytes]) -> None:
        (reply,) = replies
        grant = wire.leased(reply)
        ids = [job.job_id for job in grant.jobs]
        if not ids:
            if self.req is not self.lease_wait:
                raise RuntimeError("nothing to lease")
            self._ask()
            return
        if self.work.on_lease:
            for job in grant.jobs:
                self.work.on_lease(job.payload)
        # A worker takes what there is and acks it: what it did not get goes back to the others' quota.
        self.work.left += self.want - len(ids)
        self.want = len(ids)
        self.step = self._ack_step
        self.tr.write(self._numbered(wire.ack(grant.token, ids)))

    def _ack_step(self, replies: list[bytes]) -> None:
        (reply,) = replies
        if wire.acked_count(reply) != self.want:
            raise RuntimeError(f"ack answered {reply!r}")
        self.work.done += self.want
        if not self._leases():
            self.finish()


# A payload of 100 bytes stands at the end of its request, so all but the payload is made beforehand.
_SUBMIT: Final = wire.request("submit", {"payload": bytes(100)}).partition(bytes(100))


class Jqd(Peer):  # type: ignore[misc]
    name = "jqd"
    modes: ClassVar[dict[str, str]] = {
        "sync": "fdatasync before every reply (the default)",
        "interval": "fdatasync every 50 ms",
        "sync-session": "as sync, and a retried request is answered once",
    }
    skip: ClassVar[dict[str, tuple[str, ...]]] = {}
    prefill = (400_000, 400_000)
    port = PORT

    def command(self) -> list[str]:
        python = str(PYTHON) if PYTHON.exists() else sys.executable
        argv = [python, "-m", "jqd", "--listen", f"127.0.0.1:{PORT}", "--unix", "off"]
        argv += ["--data-dir", os.path.join(self.dir, "data")]
        return [*argv, "--sync", "interval=50"] if self.mode == "interval" else argv

    def spawn(self, argv: list[str], **more: Any) -> None:
        # JQD_DRIVER is no setting of the daemon, which refuses settings that it does not know.
        environ = {key: value for key, value in os.environ.items() if not key.startswith("JQD_")}
        super().spawn(argv, env={**environ, "PYTHONPATH": str(ROOT)}, **more)

    async def connect(self, role: str) -> Any:
        loop = asyncio.get_running_loop()
        with_session = self.mode == "sync-session"
        _, connection = await loop.create_connection(
            lambda: Conn(with_session=with_session), "127.0.0.1", PORT
        )
        await connection.hello()
        return connection


PEERS = [Jqd]
