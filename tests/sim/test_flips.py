"""A sample of all flipped bits; all of them: `make flips` (docs/faults.md has the figures)."""

import pytest

from jqd.core.engine import ReplayFailed
from jqd.offline import loss
from jqd.storage import segment, snapshot, wal
from jqd.storage.directory import Directory
from jqd.storage.segment import End, SegmentReader, Verdict
from tests.sim import flips
from tests.sim.flips import BITS, BYTES, CUT, EXACT, FELL_BACK, NAMES, REFUSED, REPAIRED, judge, reference

SAMPLED = 5_000

RIGHT = {
    "sealed": {EXACT, REFUSED},
    "unsealed": {CUT, REFUSED},
    "segments": {CUT, REFUSED},
    "closed": {REFUSED},
    "newest": {FELL_BACK},
    "first": {FELL_BACK},
    "both": {REFUSED},
}


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bit_is_never_silent_and_costs_at_most_the_last_unsealed_batch(name, request):
    seed = request.config.getoption("randomly_seed", 0)
    images = [image for image in flips.sample(SAMPLED, seed, *NAMES) if image[0] == name]
    outcomes = flips.count_outcomes(images)
    print(f"seed {seed}:", outcomes)
    repairs = outcomes.pop((name, REPAIRED), 0)
    assert outcomes.total() == len(images) >= SAMPLED // len(NAMES)
    assert {outcome for _, outcome in outcomes} <= RIGHT[name]
    assert (repairs > 5) == (REFUSED in RIGHT[name])


@pytest.mark.parametrize("name", NAMES)
def test_reference_has_enough_in_it_and_every_outcome_happens(name):
    ref = reference(name)
    assert sum(frame.size for frame in ref.frames) == BYTES
    assert len(ref.records) >= 25
    assert len(ref.frames) >= (4 if ref.frames[0].name.endswith(".snap") else 26)
    assert len({frame.name for frame in ref.frames}) == (4 if name == "segments" else 1)
    assert {judge(ref, frame.position * 8) for frame in ref.frames} == RIGHT[name]
    assert judge(ref, BITS - 1) in RIGHT[name]


def test_sample_moves_with_the_seed_and_all_is_all():
    one, again, other = (set(flips.sample(100, seed, *NAMES)) for seed in (1, 1, 2))
    assert one == again != other
    assert len(one) == 100
    assert flips.sample(BITS, 0, "first") == [("first", bit) for bit in range(BITS)]


def test_processes_come_to_the_same_as_one():
    images = flips.sample(210, 3, *NAMES)
    together = flips.run(images, 2)
    assert together == flips.count_outcomes(images)
    assert sum(count for (_, outcome), count in together.items() if outcome != REPAIRED) == 210


# --- the alarm ----------------------------------------------------------------------------------


def stop_quietly_at_bad_bytes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        SegmentReader, "_judge_bad_bytes", lambda self, offset, reason: End(Verdict.TORN, offset, reason)
    )


def believe_every_payload(patch: pytest.MonkeyPatch) -> None:
    def believe(data, offset, header):
        start = offset + 64
        return data[start : start + header.payload_bytes], header.header_crc

    patch.setattr(segment, "decode_payload", believe)
    patch.setattr(snapshot, "decode_payload", believe)


def cut_without_a_copy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Directory, "quarantine", lambda self, segment_no, offset, tail: "nowhere")


def remove_a_damaged_snapshot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Directory, "move_to_quarantine", lambda self, name: self.remove([name]))


def read_the_head_of_a_snapshot_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wal, "verify", snapshot.read_base)


def report_no_jobs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loss._Story, "runs", lambda self: iter(()))


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (stop_quietly_at_bad_bytes, "sealed"),
        (stop_quietly_at_bad_bytes, "unsealed"),
        (believe_every_payload, "unsealed"),
        (believe_every_payload, "newest"),
        (cut_without_a_copy, "sealed"),
        (remove_a_damaged_snapshot, "newest"),
        (read_the_head_of_a_snapshot_only, "first"),
        (report_no_jobs, "segments"),
    ],
)
def test_planted_bug_is_noticed_within_few_flips(plant, name, monkeypatch):
    ref = reference(name)
    # The first bit of a frame of the middle and of the last one, a bit of a payload, and the last bit of all.
    middle, last = ref.frames[len(ref.frames) // 2], ref.frames[-1]
    bits = [middle.position * 8, (middle.position + 66) * 8, last.position * 8, BITS - 1]
    assert {judge(ref, bit, with_repair=True) for bit in bits} <= RIGHT[name]
    plant(monkeypatch)
    with pytest.raises((AssertionError, ReplayFailed)) as noticed:
        for bit in bits:
            judge(ref, bit, with_repair=True)
    assert noticed.value.__notes__[-1].startswith(f"reference {name}, bit ")
