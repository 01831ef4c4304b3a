"""The alarm: each way in which a run of the simulator can be wrong makes it end red, and says how to see it again."""

import json
import subprocess
import sys

import pytest

from tests.sim import __main__ as command
from tests.sim import marks, runner
from tests.sim.marks import MARKS, Marks
from tests.sim.planted import PLANTED, Planted, _find, planted
from tests.sim.runner import ROOT, catch, quiet, run_seeds

BUG = "attempt not counted"
HARMLESS = Planted("jqd.core.leasing:next_epoch", "state.epoch + 1", "1 + state.epoch", 2)


@pytest.fixture(autouse=True)
def no_log():
    quiet()


def said_by(line: str) -> tuple[int, str]:
    """Run a line of the output, as its reader would."""
    python = line.strip().removeprefix("replay: ").replace("python -m", f"{sys.executable} -m")
    done = subprocess.run(["bash", "-c", python], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def test_broken_invariant_ends_red_and_each_line_of_the_report_shows_it_again(capsys):
    assert command.main(["run", "--planted", BUG, "--first", "2", "--count", "2", "--steps", "150"]) == 1
    lines = capsys.readouterr().out.splitlines()
    headline = next(line for line in lines if line.startswith("seed 2, commit "))
    invariant = headline.split(": ")[1].split()[0]
    again = [line for line in lines if "-m tests.sim replay" in line]
    assert len(again) == 3  # the seed, its plan cut down, and the second seed
    for line in again:
        code, text = said_by(line)
        assert code == 1 and f"\n{invariant} at step" in text, line
        code, text = said_by(line.replace(f"--planted '{BUG}'", ""))
        assert code == 0 and "\nfine: trace" in text, line


def test_mark_that_never_comes_up_ends_a_run_red(capsys):
    short = ["run", "--count", "1", "--steps", "20", "--processes", "1"]
    assert command.main(short) == 0
    assert command.main([*short, "--marks-from", "1"]) == 1
    assert "never seen: " in capsys.readouterr().out


def test_situation_that_is_not_in_the_table_ends_a_run_red(monkeypatch):
    done = run_seeds([1], 100)
    assert not done.failures
    hit = next(name for name, count in done.marks.items() if count)
    monkeypatch.setattr(marks, "MARKS", {name: MARKS[name] for name in MARKS if name != hit})
    [(_, invariant, _, text)] = run_seeds([1], 100).failures
    assert invariant == "CODE" and hit in text
    with pytest.raises(KeyError):
        Marks().hit("nobody has heard of this")


def test_run_that_did_less_than_was_asked_ends_red(capsys, tmp_path):
    short = ["run", "--count", "1", "--steps", "20", "--processes", "1", "--json", str(tmp_path / "figures")]
    assert command.main([*short, "--min-steps", "20"]) == 0
    assert command.main([*short, "--min-steps", "21"]) == 1
    assert "this run proves nothing" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures").read_text())
    assert (figures["schedules"], figures["steps"], len(figures["wrong"])) == (1, 20, 1)


def test_plan_that_does_not_do_the_same_twice_ends_a_run_red(capsys, monkeypatch):
    twice = ["run", "--first", str(runner.TWICE_EVERY), "--count", "1", "--steps", "20", "--processes", "1"]
    assert command.main(twice) == 0
    monkeypatch.setattr(command, "hashes_elsewhere", lambda seeds, *_: dict.fromkeys(seeds, 7))
    assert command.main(twice) == 1
    assert "and, with other hashes of str, 7" in capsys.readouterr().out


def test_long_run_makes_plans_and_images_until_its_time_is_over(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "OTHERS_EVERY", 1)
    monkeypatch.setattr(runner, "TELL_EVERY_S", 0)
    few = ["--steps", "20", "--processes", "1", "--first", "4", "--json", str(tmp_path / "figures")]
    assert command.main(["long", "--seconds", "2", *few]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "first seed 4" in lines[0]
    assert len([line for line in lines if line.startswith("{")]) > 2
    figures = json.loads((tmp_path / "figures").read_text())
    assert figures["schedules"] and figures["images"]


# --- planted bugs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug_fits_the_code_and_goes_again(name):
    _, _, function = _find(PLANTED[name].where)
    before = function.__code__
    with planted(name):
        assert function.__code__ is not before
    assert function.__code__ is before


def test_planted_bug_that_is_not_caught_ends_red(capsys, monkeypatch):
    monkeypatch.setitem(PLANTED, "harmless", HARMLESS)
    monkeypatch.setattr(command, "catch_all", lambda names, _: map(catch, names))
    assert command.main(["planted", BUG]) == 0
    assert command.main(["planted", BUG, "harmless"]) == 1
    output = capsys.readouterr().out
    assert "1 of 2 planted bugs caught" in output and "not caught: harmless" in output
