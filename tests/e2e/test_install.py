"""The packages as a user gets them: built, installed with the locked base dependencies only, and started."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Installing may have to download; the suite's budget in .ci/budgets is the tighter limit.
pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(180)]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build sdist and wheel from a copy, so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for name in ("jqd", "jqctl"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--no-isolation", source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the bin directory of a new environment that has the base install and nothing else."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", environment)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
    run(*pip, "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", ROOT / "requirements.lock")
    run(*pip, "--no-deps", wheel)
    return environment / "bin"


def test_wheel_holds_both_packages_with_their_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path.relative_to(ROOT).as_posix() for room in ("jqd", "jqctl") for path in (ROOT / room).rglob("*.py")
    }
    assert sources <= names
    assert {"jqd/py.typed", "jqctl/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_wheel_carries_licence_and_readme(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    assert [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert "# jqd" in archive.read(metadata).decode()


def test_base_install_has_client_and_jqctl_without_the_daemon(installed):
    run(installed / "python", "-c", "import jqd; jqd.AsyncClient; jqd.JqdError")
    assert "submit" in run(installed / "jqctl", "--help")
    packages = run(installed / "python", "-m", "pip", "list", "--format=freeze").lower()
    assert "uvloop" not in packages
    assert "structlog" not in packages


def test_base_install_satisfies_its_own_metadata(installed):
    run(installed / "python", "-m", "pip", "check")
