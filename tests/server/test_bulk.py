"""A million jobs are listed and acted upon while others are served in each turn of the loop."""

import asyncio
from itertools import pairwise

import pytest

from jqd.core.model import LIST_LIMIT_MAX, SCAN_JOBS_MAX
from jqd.server.session import TURN_WORK_MAX
from tests.support.hands import Peer, Room
from tests.support.wire import request

pytestmark = pytest.mark.slow

JOBS = 1_000_000
AT_ONCE = 8  # requests of the greedy one that are on their way together
# What one request may do beyond a turn's share: it looks at so many jobs, and moves so many.
REQUEST_WORK_MAX = SCAN_JOBS_MAX + 4 * LIST_LIMIT_MAX


class Bystander:
    """Asks the figures of the server again and again, and holds in which turn it was answered."""

    def __init__(self, room: Room, peer: Peer) -> None:
        self.room = room
        self.peer = peer
        self.answers = 0
        self.worked = [room.driver.engine.state.work]
        self._request_id = 1
        self._asked_in = 0
        self._ask()

    def _ask(self) -> None:
        self._request_id += 1
        self._asked_in = self.room.driver._turns
        self.peer.say(request(self._request_id, "stats"))

    def look(self) -> None:
        """Once a pass of the loop."""
        work = self.room.driver.engine.state.work
        if work != self.worked[-1]:
            self.worked.append(work)
        for answer in self.peer.heard():
            # `turns` counts those that ended before it was asked.
            assert answer.body["process"]["turns"] <= self._asked_in + 1, (
                "a turn passed by without serving it"
            )
            self.answers += 1
            self._ask()


async def sweep(room: Room, verb: str, **args: object) -> tuple[int, Bystander]:
    """Do something to all jobs, page by page, with several askers on one connection; return how many it was."""
    greedy, bystander = await room.peer(), Bystander(room, await room.peer())
    span = JOBS // AT_ONCE
    ends = [(part + 1) * span for part in range(AT_ONCE)]
    cursors: dict[int, int] = {}  # request -> the part that it goes through
    request_id, count = 1, 0

    def ask(part: int, cursor: int) -> bytes:
        nonlocal request_id
        request_id += 1
        cursors[request_id] = part
        return request(request_id, verb, cursor=cursor, limit=LIST_LIMIT_MAX, **args)

    greedy.say(b"".join(ask(part, part * span) for part in range(AT_ONCE)))
    while cursors:
        bystander.look()
        said = b""
        for answer in greedy.heard():
            assert answer.status == "ok", answer
            part = cursors.pop(answer.request_id)
            body = answer.body
            count += len(body["jobs"]) if verb == "list" else body["count"]
            if body["cursor"] is not None and body["cursor"] <= ends[part]:
                said += ask(part, body["cursor"])
        if said:
            greedy.say(said)
        await asyncio.sleep(0)
    return count, bystander


@pytest.mark.parametrize(
    ("verb", "args", "least"),
    [
        ("list", {}, JOBS),
        ("list", {"filter": {"where": "error contains 'timed out' or metadata.customer = 'x'"}}, 0),
        ("purge", {"filter": {"where": "state = ready and priority = 7"}}, 0),
        ("cancel", {"filter": {"state": "ready"}}, JOBS),
        ("purge", {"filter": {"state": "ready"}, "dry_run": True}, JOBS),
        ("purge", {"filter": {"state": "ready"}}, JOBS),
    ],
)
async def test_others_are_served_in_each_turn(verb, args, least):
    async with Room() as room:
        filler = await room.peer()
        for number in range(2, 2 + JOBS // 10_000):
            await filler.ask(request(number, "submit_many", groups=[{"payloads": [b""] * 10_000}]))
        room.driver.engine.state.work = 0
        count, bystander = await sweep(room, verb, **args)
        assert count >= least
        assert bystander.answers >= 10
        steps = max(b - a for a, b in pairwise(bystander.worked))
        assert steps <= 2 * (TURN_WORK_MAX + REQUEST_WORK_MAX), "a turn did more than its share"
