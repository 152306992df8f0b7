"""What `make test-lowest` installs is what pyproject.toml promises to work with."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_the_lowest_releases_are_the_ones_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {
        found.name: {Version(each.version) for each in found.specifier if each.operator == ">="}
        for found in map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["torch"]])
    }
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tested = [Requirement(line) for line in lines if not line.startswith("#")]
    assert {found.name: {Version(each.version) for each in found.specifier} for found in tested} == promised
