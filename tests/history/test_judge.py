"""What is judged of a run besides the checks of its history."""

import msgspec
import pytest

from tests.history.harness import Figures
from tests.history.judge import Wrong, judge


def test_a_run_that_broke_a_client_is_wrong_whatever_its_history_says(tmp_path):
    for name in ("clients", "archive"):
        (tmp_path / name).mkdir()
    (tmp_path / "facts").touch()
    figures = Figures(seed=1, broken=["c2 ended with 1: Traceback"])
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(figures))
    with pytest.raises(Wrong) as wrong:
        judge(tmp_path)
    assert wrong.value.reasons["run"] == "a client broke"
    assert "c2 ended with 1: Traceback" in str(wrong.value)
