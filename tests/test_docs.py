"""The documentation is short where it must be, its links lead somewhere, and its commands exist."""

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from moleflow.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
OURS = [page for page in PAGES if page.name != "RESULTS.md"]
"""``RESULTS.md`` is written by a program."""

SUBCOMMANDS = cast(TyperGroup, get_command(app)).commands

every_page = pytest.mark.parametrize("page", OURS, ids=lambda page: str(page.relative_to(ROOT)))

FENCE = re.compile(r"^(```+).*?^\1\s*$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
LONGEST_LINE = 120
README_WORDS = 900


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """What headings of a page are called in links to them, as GitHub and MkDocs both make it."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(page)), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The command lines of a page, in blocks of shell and between backticks, as words; comments are left out."""
    text = read(page)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    for line in lines:
        for part in re.split(r"&&|;|\|", line.replace("'", '"')):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # prose with an apostrophe
                continue
            if words[:1] and words[0] in ("docker", "MOLEFLOW_DATA=DIR"):
                words = [*words[words.index("moleflow") + 1 :]] if "moleflow" in words else []
            yield words


def options_of(command: str) -> set[str]:
    """The options that a subcommand of ``moleflow`` takes."""
    found = SUBCOMMANDS[command]
    return {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def test_the_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").split()) <= README_WORDS


@every_page
def test_no_line_of_prose_is_long(page: Path) -> None:
    text = FENCE.sub(lambda block: "\n" * block[0].count("\n"), read(page))
    lines = enumerate(text.splitlines(), start=1)
    assert not [number for number, line in lines if len(line) > LONGEST_LINE and not line.startswith("|")]


@every_page
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", read(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_a_page_of_the_site_links_within_the_site(page: Path) -> None:
    if page.is_relative_to(ROOT / "docs"):
        links = [link for link in LINK.findall(FENCE.sub("", read(page))) if not re.match(r"[a-z]+:|#", link)]
        assert all((page.parent / link.partition("#")[0]).resolve().is_relative_to(ROOT / "docs") for link in links)


@every_page
def test_subcommands_and_options_exist(page: Path) -> None:
    known = set(SUBCOMMANDS)
    for words in commands(page):
        if words[:1] != ["moleflow"] or len(words) < 2 or words[1].startswith("-") or words[1].isupper():
            continue
        assert words[1] in known, words
        given = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        assert given <= options_of(words[1]), words


@every_page
def test_benchmarks_and_their_options_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = importlib.import_module("benchmarks.__main__").NAMES
    for words in commands(page):
        if "benchmarks" not in words or words[words.index("benchmarks") - 1] != "-m":
            continue
        name, *rest = words[words.index("benchmarks") + 1 :] or ["NAME"]
        if name.isupper():
            continue
        assert name in names, words
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        if given:
            with pytest.raises(SystemExit):
                importlib.import_module(f"benchmarks.{names[name][0]}").main(["--help"])
            assert given <= set(re.findall(r"--[\w-]+", capsys.readouterr().out)), words


@every_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.M))
    for words in commands(page):
        if words[:1] == ["make"] and len(words) > 1 and not words[1].isupper():
            assert words[1] in targets, words


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths between backticks that begin with a folder of the checkout."""
    folders = "model|training|service|moleflow|benchmarks|tests|examples|docs|docker|scripts"
    for path in re.findall(rf"`((?:{folders})/[\w./]*\w)`", FENCE.sub("", read(page))):
        assert (ROOT / path).exists(), path


def test_settings_that_are_named_exist() -> None:
    from moleflow.service.environment import ENVIRONMENT_PREFIX
    from moleflow.service.settings import Settings

    named = set(re.findall(r"`MOLEFLOW_([A-Z_]+)`", read(ROOT / "docs" / "deployment.md")))
    elsewhere = {"THREADS"}  # read before the settings are
    assert named - elsewhere == {name.upper() for name in Settings.model_fields}, ENVIRONMENT_PREFIX


def test_the_response_that_is_shown_is_one_of_the_api() -> None:
    from moleflow.service.responses.schemas import PredictionResponse

    block = re.search(r"^```json\n(.*?)^```", read(ROOT / "docs" / "api.md"), re.M | re.S)
    assert block is not None
    shown = json.loads(block[1])
    assert set(shown) == set(PredictionResponse.model_validate(shown).model_dump())


@pytest.mark.parametrize("folder", ["model", "training", "service"])
def test_the_architecture_shows_every_package(folder: str) -> None:
    packages = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    text, picture = read(ROOT / "docs" / "architecture.md"), read(ROOT / "docs" / "images" / "architecture.svg")
    assert packages
    assert {name for name in packages if f"`{name}`" not in text} == set()
    # No image and no product passes through the first three; an exported checkpoint is another form of all the others.
    unseen = {"runtime", "files", "siblings", "exported", "exporter"}
    assert {name for name in packages - unseen if f">{name}<" not in picture} == set()


def test_the_command_says_what_there_is() -> None:
    help_text = CliRunner().invoke(app, ["--help"]).output
    named = {words[1] for words in commands(ROOT / "docs" / "quickstart.md") if words[:1] == ["moleflow"] and words[1:]}
    assert named
    assert all(name in help_text for name in named)
