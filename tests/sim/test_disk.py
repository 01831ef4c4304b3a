"""The simulator's disk loses what it may lose, keeps what it must keep, and reaches every state in between."""

import errno
import itertools
import random

import pytest

from tests.sim.disk import PAGE_BYTES, Fault, Loss, SimDisk
from tests.support.faultfs import Crash, SyncFailure

PAGE = PAGE_BYTES


class Rolls:
    """Dice over random.Random, as a test needs them."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def below(self, limit: int) -> int:
        return self._rng.randrange(limit)


def written(disk: SimDisk, path: str, *parts: bytes) -> int:
    handle = disk.create(path)
    for part in parts:
        disk.write(handle, part)
    return handle


def outcomes(disk: SimDisk, loss: Loss, count: int = 400) -> set[tuple[tuple[str, bytes], ...]]:
    """Return what many power losses leave of the directory /."""
    found = set()
    for seed in range(count):
        twin = disk.clone()
        twin.crash(loss, Rolls(seed))
        found.add(tuple(sorted(twin.listing("/").items())))
    return found


def with_synced_file() -> SimDisk:
    disk = SimDisk()
    disk.sync(written(disk, "/f", b"s" * 5_000))
    disk.sync_directory("/")
    return disk


# --- what a power loss leaves -------------------------------------------------------------------


@pytest.mark.parametrize("loss", Loss)
def test_what_was_synced_is_never_lost_nor_changed(loss):
    disk = with_synced_file()
    handle = disk.create("/other")
    disk.write(handle, b"synced without its name")
    disk.sync(handle)
    for left in outcomes(disk, loss, 50):
        assert dict(left)["f"] == b"s" * 5_000
        assert dict(left).get("other", b"synced without its name") == b"synced without its name"


@pytest.mark.parametrize("loss", Loss)
def test_all_is_kept_when_all_was_synced(loss):
    disk = with_synced_file()
    disk.make_directory("/d")
    disk.sync(written(disk, "/d/g", b"deep"))
    disk.rename("/f", "/h")
    disk.sync_directory("/d")
    disk.sync_directory("/")
    before = disk.image()
    disk.crash(loss, Rolls(1))
    assert disk.image() == before
    assert (disk.content("/h"), disk.content("/d/g")) == (b"s" * 5_000, b"deep")


def test_prefix_keeps_operations_in_their_order_over_all_files():
    disk = SimDisk()
    one = written(disk, "/a", b"1")
    two = written(disk, "/b", b"22")
    disk.write(one, b"3")
    disk.rename("/b", "/c")
    disk.write(two, b"4")
    expected: list[dict[str, bytes]] = [
        {},
        {"a": b""},
        {"a": b"1"},
        {"a": b"1", "b": b""},
        {"a": b"1", "b": b"2"},  # in part
        {"a": b"1", "b": b"22"},
        {"a": b"13", "b": b"22"},
        {"a": b"13", "c": b"22"},
        {"a": b"13", "c": b"224"},
    ]
    assert outcomes(disk, Loss.PREFIX) == {tuple(sorted(each.items())) for each in expected}
    assert [size for _, size in disk.pending()] == [0, 1, 0, 2, 1, 0, 1]
    disk.crash_behind(4, part_bytes=1)
    assert disk.listing("/") == {"a": b"1", "b": b"22"} | {"a": b"13"}


def test_subset_keeps_any_names_pages_and_size():
    disk = with_synced_file()
    disk.write(disk.open("/f"), b"n" * 8_000)  # 13,000 bytes: the rest of page 1, page 2, and some of page 3
    disk.rename("/f", "/g")
    found = outcomes(disk, Loss.SUBSET, 2_000)
    names = {name for left in found for name, _ in left}
    assert names == {"f", "g"}
    contents = {content for left in found for _, content in left}
    whole = b"s" * 5_000 + b"n" * 8_000
    expected = set()
    for one, two, three, size in itertools.product((False, True), repeat=4):
        end = 13_000 if size or three else 12_288 if two else 8_192 if one else 5_000
        left = bytearray(whole[:5_000] + bytes(end - 5_000))
        for page, is_kept in ((1, one), (2, two), (3, three)):
            if is_kept:
                left[page * PAGE : (page + 1) * PAGE] = whole[page * PAGE : (page + 1) * PAGE]
        expected.add(bytes(left))
    assert contents == expected
    assert len(found) == 2 * len(expected) == 24


def test_torn_page_has_sectors_old_new_zero_and_garbage():
    disk = with_synced_file()
    disk.write(disk.open("/f"), b"n" * 3_000)  # 8,000 bytes in all: on page 1 alone
    seen = set()
    for left in outcomes(disk, Loss.TORN, 600):
        content = dict(left)["f"]
        assert content[:5_000] == b"s" * 5_000, "a crash damaged what was synced"
        for start in range(5_120, len(content), 512):
            sector = content[start : start + 512]
            kinds = {b"n" * len(sector): "new", bytes(len(sector)): "zeros or old"}
            seen.add((start, kinds.get(sector, "garbage")))
    assert seen == {
        (start, kind) for start in range(5_120, 8_000, 512) for kind in ("new", "zeros or old", "garbage")
    }


def test_file_that_was_emptied_is_its_old_self_its_new_one_or_a_mixture():
    disk = SimDisk()
    disk.sync(written(disk, "/f", b"o" * 9))
    disk.sync_directory("/")
    written(disk, "/f", b"new")
    assert {dict(left)["f"] for left in outcomes(disk, Loss.SUBSET)} == {
        b"o" * 9,  # neither
        b"",  # emptied, nothing written
        bytes(3),  # ... but for its size
        b"new",
        b"new" + b"o" * 6,  # written, not emptied
    }
    assert {dict(left)["f"] for left in outcomes(disk, Loss.PREFIX)} == {b"o" * 9, b"", b"n", b"ne", b"new"}


@pytest.mark.parametrize("loss", Loss)
def test_same_dice_leave_the_same(loss):
    disk = with_synced_file()
    disk.write(disk.open("/f"), b"n" * 9_000)
    written(disk, "/g", b"n" * 9_000)
    for seed in range(20):
        images = set()
        for again in range(2):
            twin = SimDisk(again)
            twin.root, twin._seed = disk.clone().root, seed
            twin.crash(loss, Rolls(seed))
            images.add(twin.image())
        assert len(images) == 1


def test_after_a_power_loss_processes_see_what_the_disk_has():
    for loss, seed in itertools.product(Loss, range(30)):
        disk = with_synced_file()
        disk.write(disk.open("/f"), b"n" * 9_000)
        disk.rename("/f", "/g")
        disk.sync_failure = SyncFailure.KEPT_IN_CACHE
        disk.arm(Fault.SYNC_FAILS, 1)
        with pytest.raises(OSError, match="Input/output"):
            disk.sync(disk.open("/g"))
        disk.crash(loss, Rolls(seed))
        ((name, content),) = disk.listing("/").items()
        assert content == bytes(disk.file(f"/{name}").durable) == b"s" * 5_000
        assert (disk.pending(), disk.open_paths) == ([], [])


# --- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "call", "code"),
    [
        (Fault.READ_FAILS, "read", errno.EIO),
        (Fault.WRITE_FAILS, "write", errno.EIO),
        (Fault.SYNC_FAILS, "sync", errno.EIO),
        (Fault.NO_SPACE, "write", errno.ENOSPC),
    ],
)
def test_armed_fault_hits_the_call_that_it_was_meant_for_and_no_other(fault, call, code):
    disk = SimDisk()
    disk.arm(fault, 4 if fault is Fault.NO_SPACE else 3)
    failed = []
    handle = disk.create("/f")
    for round_ in range(4):
        for name, do in (
            ("write", lambda: disk.write(handle, b"data")),
            ("sync", lambda: disk.sync(handle)),
            ("read", lambda: disk.read(handle, 0, 9)),
        ):
            try:
                do()
            except OSError as error:
                failed.append((round_, name, error.errno))
    assert failed == [(2, call, code)]
    assert disk.content("/f") == (b"data" * 2 + b"da" + b"data" if call == "write" else b"data" * 4)


def test_kill_stops_before_the_call_and_whatever_follows():
    disk = SimDisk()
    handle = written(disk, "/f", b"one")
    disk.arm(Fault.KILL, 2)
    disk.read(handle, 0, 1)
    disk.sync(handle)
    for _ in range(2):
        with pytest.raises(Crash):
            disk.rename("/f", "/g")
    disk.kill()
    assert disk.listing("/") == {"f": b"one"}
    disk.rename("/f", "/g")


def test_what_was_disarmed_or_armed_in_the_original_does_not_happen():
    disk = SimDisk()
    disk.arm(Fault.NO_SPACE, 1)
    written(disk.clone(), "/f", b"one")
    disk.disarm()
    written(disk, "/f", b"one")


def test_nothing_of_a_sync_is_durable_before_it_returns():
    disk = SimDisk()
    disk.sync_directory("/")
    handle = written(disk, "/f", b"one")
    disk.sync_directory("/")
    seen = []

    def meanwhile(name: str, path: str) -> None:
        if name == "sync":
            twin = disk.clone()
            twin.crash_behind(0)
            seen.append(twin.content("/f"))

    disk.on_call = meanwhile
    disk.sync(handle)
    disk.on_call = None
    disk.crash_behind(0)
    assert (seen, disk.content("/f")) == ([b""], b"one")


def test_rot_changes_one_bit_on_the_disk_and_in_the_cache():
    disk = with_synced_file()
    disk.write(disk.open("/f"), b"unsynced")
    twin = disk.clone()
    disk.flip("/f", 8 * 7)
    assert disk.content("/f")[7] == ord("s") ^ 1
    disk.crash_behind(0)
    assert disk.content("/f")[7] == ord("s") ^ 1
    assert twin.content("/f")[7] == ord("s")


def test_backup_that_is_restored_is_the_directory_as_it_was():
    disk = SimDisk()
    disk.make_directory("/d")
    disk.make_directory("/d/e")
    written(disk, "/d/f", b"then")
    written(disk, "/d/e/g", b"deep")
    backup = disk.copy_of("/d")
    written(disk, "/d/f", b"now")
    written(disk, "/d/later", b"")
    disk.kill()
    disk.restore("/d", backup)
    disk.crash_behind(0)
    assert disk.listing("/d") == {"f": b"then"}
    assert disk.listing("/d/e") == {"g": b"deep"}
    written(disk, "/d/f", b"changed")
    disk.restore("/d", backup)
    assert disk.content("/d/f") == b"then"


# --- images -------------------------------------------------------------------------------------


def test_image_is_what_is_durable_and_nothing_else():
    disk = with_synced_file()
    image = disk.image()
    disk.write(disk.open("/f"), b"pending")
    written(disk, "/g", b"")
    assert disk.image() == image
    for change in (
        lambda twin: twin.flip("/f", 3),
        lambda twin: twin.sync_directory("/"),
        lambda twin: twin.sync(twin.open("/f")),
        lambda twin: twin.remove("/f"),
    ):
        twin = disk.clone()
        change(twin)
        assert twin.image() != image
        assert disk.image() == image
