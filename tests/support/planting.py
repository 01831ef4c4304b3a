"""Bugs that are planted in a copy of the package: one replacement in one file each.

Knows:
    what belongs to the package and its tests, where a bug goes, that its place must be there once.
Must not know:
    which bugs there are, what finds them.
"""

import shutil
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]


class Bug(Protocol):
    """A file from the root of the repository, and what is put in the place of what."""

    @property
    def file(self) -> str: ...
    @property
    def old(self) -> str: ...
    @property
    def new(self) -> str: ...


def check_place(bug: Bug) -> None:
    """Fail if the code has moved on from a bug."""
    count = (ROOT / bug.file).read_text().count(bug.old)
    assert count == 1, f"{bug.file} has changed: plant this bug where it belongs now"


def copy_package(directory: Path) -> None:
    """Copy the package and its tests into a directory, from which the tests import and start what they test."""
    for name in ("jqd", "jqctl", "tests"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))


def plant(bug: Bug, directory: Path) -> None:
    """Put a bug into the copy that stands in a directory."""
    file = directory / bug.file
    file.write_text(file.read_text().replace(bug.old, bug.new))
