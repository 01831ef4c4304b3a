"""The rules of conftest.py, tried on small suites of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SKIPS = {
    "by marker": "import pytest\n@pytest.mark.skip(reason='no such disk')\ndef test_a(): pass\n",
    "while running": "import pytest\ndef test_a(): pytest.skip('no such disk')\n",
    "at import": "import pytest\npytest.skip('no such disk', allow_module_level=True)\n",
}


def run(directory: Path, source: str, *, ci: bool) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "pyproject.toml", directory)
    (directory / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", directory / "tests")
    (directory / "tests" / "test_inner.py").write_text(source)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env["CI"] = "true" if ci else ""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=50)


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS.keys())
def test_skip_fails_in_ci(tmp_path, source):
    result = run(tmp_path, source, ci=True)
    assert result.returncode in (1, 2), result.stdout
    assert "a skipped test fails CI" in result.stdout
    assert "no such disk" in result.stdout


def test_skip_is_allowed_on_a_desk(tmp_path):
    result = run(tmp_path, SKIPS["while running"], ci=False)
    assert result.returncode == 0, result.stdout
    assert "1 skipped" in result.stdout


def test_expected_failure_is_not_a_skip(tmp_path):
    source = "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_a(): assert False\n"
    result = run(tmp_path, source, ci=True)
    assert result.returncode == 0, result.stdout


def test_warning_is_an_error(tmp_path):
    result = run(tmp_path, "import warnings\ndef test_a(): warnings.warn('old')\n", ci=False)
    assert result.returncode == 1, result.stdout


def test_unknown_marker_is_an_error(tmp_path):
    result = run(tmp_path, "import pytest\n@pytest.mark.slwo\ndef test_a(): pass\n", ci=False)
    assert result.returncode == 2, result.stdout
