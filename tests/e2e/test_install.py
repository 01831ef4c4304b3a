"""The packages as a user gets them: built, installed with the locked base dependencies only, and started."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Installing may have to download; the suite's budget in .ci/budgets is the tighter limit.
pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(180)]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
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


# --- types, as somebody sees them who has installed the package ---------------------------------

TOOLS = Path(sys.executable).parent
PROGRAMS = ["every_verb.py", "tasks.py"]
# What a program is written against. Rooms of the daemon are not; nor are a command's words for the server.
PUBLIC = {
    "jqd": "",
    "jqd.errors": "",
    "jqd.client.aio": "",
    "jqd.client.app": "",
    "jqd.client.current": "",
    "jqd.client.handle": "",
    "jqd.client.outcomes": "",
    "jqd.client.worker": "",
    "jqd.client.sync": "",
    "jqd.client.requests": "",
    "jqd.client.retry": "",
    "jqd.client.values": "",
    "jqd.core.commands": "scope reply",
}


def is_public(name: str) -> bool:
    home = max((module for module in PUBLIC if name.startswith(f"{module}.")), key=len, default="")
    if home in ("", "jqd") and name.count(".") > 1:
        return False
    return name.rpartition(".")[2] not in PUBLIC.get(home, "").split()


@pytest.fixture
def project(tmp_path):
    """Return a directory with a user's program, and no settings of anybody."""
    for name in PROGRAMS:
        shutil.copy(ROOT / "tests" / "typed" / name, tmp_path)
    return tmp_path


def test_mypy_finds_nothing_in_a_program_that_uses_everything(installed, project):
    # Where the program is: mypy takes a package in the directory that it runs in for the user's own.
    run(
        TOOLS / "mypy",
        "--strict",
        "--config-file=",
        "--python-executable",
        installed / "python",
        *PROGRAMS,
        cwd=project,
    )


def test_pyright_finds_nothing_in_a_program_that_uses_everything(installed, project):
    # In this mode basedpyright has exactly the rules of pyright's strict one.
    (project / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    said = run(TOOLS / "basedpyright", "--project", project, "--pythonpath", installed / "python")
    assert said.startswith("0 errors, 0 warnings")


def test_a_mistake_is_found(installed, project):
    """Both see jqd's types: where they saw nothing, nothing would be wrong."""
    program = project / "every_verb.py"
    program.write_text("from jqd import Client\nClient().submit('q', delay=object(), task=5)\n")
    for tool, *options in (
        ("mypy", "--config-file=", "--python-executable", str(installed / "python")),
        ("basedpyright", "--pythonpath", str(installed / "python")),
    ):
        done = subprocess.run(
            [str(TOOLS / tool), *options, str(program)], capture_output=True, text=True, cwd=project
        )
        assert done.returncode == 1 and '"delay"' in done.stdout and '"task"' in done.stdout, done.stdout


def test_nothing_is_unknown_in_the_public_interface(installed, project):
    path = f"{installed}:{os.environ['PATH']}"  # the one way to say where packages are that this check listens to
    command = [str(TOOLS / "basedpyright"), "--verifytypes", "jqd", "--outputjson"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=project, env={**os.environ, "PATH": path}
    )
    symbols = {each["name"]: each for each in json.loads(done.stdout)["typeCompleteness"]["symbols"]}
    assert {f"jqd.client.{name}" for name in ("sync.Client.submit", "aio.AsyncClient.lease")} < symbols.keys()
    # What is "partially unknown" without an Unknown in it mentions a name that is listed for itself.
    roots = ("Unknown", "is unknown", "missing type", "mbiguous")
    unclear = [
        f"{name}: {problem['message']}"
        for name, symbol in symbols.items()
        if is_public(name)
        for problem in symbol["diagnostics"]
        if any(words in problem["message"] for words in roots)
    ]
    assert not unclear, "\n".join(unclear)
