"""The Dockerfile and its build context, checked as text, without Docker."""

import fnmatch
import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def read_instructions() -> list[tuple[str, str]]:
    """The instructions as (name, rest), without comments and with continuation lines joined."""
    text = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


INSTRUCTIONS = read_instructions()


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each image that is to be run, in the order of the file."""
    starts = [number for number, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM"]
    parts = [INSTRUCTIONS[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return [part for part in parts if any(name == "ENTRYPOINT" for name, _ in part)]


every_image = pytest.mark.parametrize("image", stages(), ids=["exported", "all"])


def rests(name: str) -> list[str]:
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def copied_from_the_context() -> list[str]:
    """Sources of COPY in the project."""
    copies = [rest.split() for rest in rests("COPY") if not rest.startswith("--from=")]
    return [source for words in copies for source in words[:-1]]


def is_sent_to_the_engine(path: str) -> bool:
    """Whether ``.dockerignore`` includes a path; as in Docker, the last matching pattern decides."""
    sent = True
    for pattern in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if pattern and not pattern.startswith("#"):
            name = pattern.removeprefix("!").replace("**/", "*")
            if fnmatch.fnmatch(path, name) or path.startswith(name + "/"):
                sent = pattern.startswith("!")
    return sent


def test_the_default_base_is_the_slim_python_image() -> None:
    assert INSTRUCTIONS[0] == ("ARG", "BASE_IMAGE=python:3.11-slim")
    assert all(rest.split()[0] == "${BASE_IMAGE}" for rest in rests("FROM"))


def test_nothing_needs_buildkit() -> None:
    text = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"^\s*#\s*syntax\s*=", text, re.MULTILINE)
    for name, rest in INSTRUCTIONS:
        flags = re.findall(
            r"(?:^|\s)--(mount|network|security|link|chmod|parents|exclude|checksum|keep-git-dir)\b", rest
        )
        assert not (flags and name in {"RUN", "COPY", "ADD"}), f"{name} {rest}"
        assert "<<" not in rest, f"{name} {rest}"


@every_image
def test_the_image_runs_as_a_numbered_user_other_than_root(image: list[tuple[str, str]]) -> None:
    user, _, group = [rest for name, rest in image if name == "USER"][-1].partition(":")
    assert int(user) > 0
    assert int(group) > 0


@every_image
def test_the_final_user_is_set_last(image: list[tuple[str, str]]) -> None:
    after_the_user = image[[name for name, _ in image].index("USER") + 1 :]
    assert not {"RUN", "COPY", "ADD"} & {name for name, _ in after_the_user}


@every_image
def test_the_code_is_copied_after_the_dependencies_are_installed(image: list[tuple[str, str]]) -> None:
    first_code = next(i for i, (name, rest) in enumerate(image) if name == "COPY" and rest.startswith("model "))
    installs = [i for i, (name, rest) in enumerate(image) if name == "RUN" and "pip install" in rest]
    assert [i > first_code for i in installs] == [False] * (len(installs) - 1) + [True]


def test_installing_the_code_installs_nothing_else() -> None:
    installs = [rest for rest in rests("RUN") if rest.endswith(" /src")]
    assert len(installs) == len(stages())
    assert all("--no-deps" in install and "--no-build-isolation" in install for install in installs)


def test_no_package_cache_stays_in_a_layer() -> None:
    for rest in rests("RUN"):
        assert rest.count("pip install") == rest.count("pip install --no-cache-dir")


@pytest.mark.parametrize("name", ["ENTRYPOINT", "HEALTHCHECK"])
def test_entrypoint_and_health_check_use_the_exec_form(name: str) -> None:
    for rest in rests(name):
        command = json.loads(rest[rest.index("[") :])
        assert all(isinstance(word, str) for word in command)


def test_the_health_check_is_in_python() -> None:
    assert all('["python3", "/opt/moleflow/docker/healthcheck.py"]' in rest for rest in rests("HEALTHCHECK"))


@pytest.mark.parametrize("source", sorted({*copied_from_the_context()}))
def test_copied_files_exist_and_are_in_the_build_context(source: str) -> None:
    assert (ROOT / source).exists()
    assert is_sent_to_the_engine(source)


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "models/factory.safetensors", "data/bottle/a.png", "tests"]
)
def test_unneeded_files_are_not_in_the_build_context(path: str) -> None:
    assert not is_sent_to_the_engine(path)


def test_compiled_python_files_are_not_in_the_build_context() -> None:
    assert not is_sent_to_the_engine("model/__pycache__/flow.cpython-311.pyc")


def installed_packages() -> list[str]:
    """Names or patterns of the packages that setuptools installs."""
    chosen = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    return chosen["find"]["include"] if isinstance(chosen, dict) else chosen


def test_every_top_level_package_is_copied() -> None:
    assert {name.partition(".")[0].rstrip("*") for name in installed_packages()} <= set(copied_from_the_context())


@pytest.mark.parametrize("top", ["model", "training", "service", "moleflow"])
def test_copied_packages_are_installed_with_their_subpackages(top: str) -> None:
    assert top in copied_from_the_context()
    for path in (ROOT / top).rglob("__init__.py"):
        name = ".".join(path.parent.relative_to(ROOT).parts)
        if top != "moleflow":  # moleflow/ links to the folder
            name = f"moleflow.{name}"
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in installed_packages()), name
