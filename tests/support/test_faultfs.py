"""The disk in memory is worth what its own rules are worth."""

import random

from tests.support.faultfs import DROP, KEEP, FaultDisk, tear


def change(disk: FaultDisk, rng: random.Random) -> None:
    """Do one thing to a disk: a call, a fault, damage."""
    path = f"/d/{rng.randrange(4)}"
    there = path.removeprefix("/d/") in disk.listing("/d")
    match rng.randrange(9):
        case 0:
            handle = disk.create(path)
            disk.write(handle, rng.randbytes(rng.randrange(1, 50)))
            if rng.random() < 0.5:
                disk.sync(handle)
        case 1 if there:
            disk.unlink(path)
        case 2 if there:
            disk.rename(path, "/d/other")
        case 3:
            disk.sync_directory("/d")
        case 4 if there:
            disk.file(path).cache[:1] = b"!"
        case 5:
            disk.overwrite(path, rng.randbytes(9))
        case 6:
            disk.power_loss(rng.choice([DROP, KEEP, tear(rng)]))
            disk.make_directory("/d")
        case _:
            handle = disk.create(f"/d/new {rng.random()}")
            disk.write(handle, rng.randbytes(30))
            disk.cut(handle, rng.randrange(30))


def test_clone_and_original_never_see_each_other():
    for seed in range(150):
        rng = random.Random(seed)
        disk = FaultDisk(seed)
        disk.make_directory("/d")
        for _ in range(8):
            change(disk, rng)
        twin = disk.clone()
        assert twin.state() == disk.state()
        for one, other in ((disk, twin), (twin, disk)):
            before = other.state()
            for _ in range(8):
                change(one, rng)
            assert other.state() == before
            assert one.state() != before


def test_open_file_of_a_clone_is_the_clone_s():
    disk = FaultDisk()
    handle = disk.create("/f")
    disk.write(handle, b"one")
    twin = disk.clone()
    disk.write(handle, b", two")
    twin.write(handle, b", three")
    assert (disk.content("/f"), twin.content("/f")) == (b"one, two", b"one, three")


def test_clones_have_chances_of_their_own_and_leave_those_of_the_original_alone():
    disk, untouched = FaultDisk(5), FaultDisk(5)
    twins = [disk.clone(), disk.clone()]
    drawn = {each.random_bytes(8) for each in (*twins, twins[0].clone(), disk)}
    assert len(drawn) == 4
    assert untouched.random_bytes(8) in drawn
    assert disk.random_bytes(8) == untouched.random_bytes(8)
