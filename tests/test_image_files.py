"""Which files a command reads from folders, in what order, and where their overlays go."""

import os
import subprocess
from pathlib import Path

import pytest

from moleflow.image_files import find_images

SUFFIXES = frozenset({".png", ".jpg"})


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def find(*given: Path, outputs: Path | None = None) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Paths with their overlays, and problems."""
    problems: list[tuple[Path, str]] = []
    found = find_images(given, SUFFIXES, lambda path, text: problems.append((path, text)), outputs)
    return [(image.path, str(image.overlay)) for image in found], problems


def test_a_folder_is_read_recursively_in_natural_order(tmp_path: Path) -> None:
    make(tmp_path, "10.png", "2.PNG", "a/x/1.jpg", "a/2.jpg", "b.png", "notes.txt", ".hidden.png", ".cache/1.png")
    found, problems = find(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path, _ in found] == [
        "2.PNG",
        "10.png",
        "a/2.jpg",
        "a/x/1.jpg",
        "b.png",
    ]
    assert [place for _, place in found] == [
        "2_overlay.png",
        "10_overlay.png",
        "a/2_overlay.png",
        "a/x/1_overlay.png",
        "b_overlay.png",
    ]
    assert problems == []


def test_images_that_differ_only_in_suffix_get_different_overlays(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "A.jpg", "a.png.png")
    places = [place for _, place in find(tmp_path)[0]]
    assert len({place.casefold() for place in places}) == 3


@pytest.mark.parametrize(
    "names",
    [
        ("line1/good", "line2/good"),
        ("line1/good", "line2/good/0.png"),
        ("x/line1/good", "y/line1/good", "line1/good"),
        ("a_b/c/d.png", "a/b_c/d.png", "x/a_b/c/d.png"),
        ("a/1.png", "a/1.jpg"),
        ("a", "a/0.png"),
    ],
)
def test_overlays_of_several_arguments_never_collide(tmp_path: Path, names: tuple[str, ...]) -> None:
    given = []
    for name in names:
        given.append(tmp_path / name)
        make(tmp_path, *([name] if given[-1].suffix else [f"{name}/0.png", f"{name}/1.png"]))
    found, _ = find(*given)
    places = {os.path.normcase(place).casefold() for _, place in found}
    assert len(places) == len(found)
    assert not any(Path(place).is_absolute() or ".." in Path(place).parts for place in places)


def test_a_repeated_argument_is_used_once(tmp_path: Path) -> None:
    make(tmp_path, "a/0.png", "b.png")
    given = (tmp_path / "a", tmp_path / "b.png", tmp_path / "a" / "..", tmp_path / "a", tmp_path / "b.png")
    found, problems = find(*given)
    assert sorted(path.name for path, _ in found) == ["0.png", "b.png", "b.png"]  # b.png is named, and in a/..
    assert problems == []


def test_links_are_followed_and_cycles_end(tmp_path: Path) -> None:
    make(tmp_path, "images/0.png", "elsewhere/1.png")
    folder = tmp_path / "images"
    (folder / "up").symlink_to(tmp_path / "images")
    (folder / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "dangling").symlink_to("nothing")
    found, problems = find(folder)
    assert [path.name for path, _ in found] == ["0.png", "1.png"]
    assert problems == []


def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    for depth in range(30):  # 2^30 paths to the last one
        make(tmp_path, f"{depth}/0.png")
        if depth:
            for name in ("a", "b"):
                (tmp_path / f"{depth - 1}" / name).symlink_to(tmp_path / f"{depth}")
    assert len(find(tmp_path / "0")[0]) == 30


def test_folders_may_be_nested_deeper_than_the_recursion_limit(tmp_path: Path) -> None:
    folder = tmp_path
    try:
        for _ in range(1500):
            folder = folder / "d"
            folder.mkdir()
        (folder / "0.png").touch()
        assert len(find(tmp_path)[0]) == 1
    finally:  # too deep for shutil.rmtree
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_a_folder_without_images_is_a_problem_and_others_are_still_read(tmp_path: Path) -> None:
    make(tmp_path, "a/notes.txt", "b/0.png")
    found, problems = find(tmp_path / "a", tmp_path / "b")
    assert [path.name for path, _ in found] == ["0.png"]
    assert [path.name for path, _ in problems] == ["a"]
    assert "contains no image" in problems[0][1]


def test_the_folder_of_overlays_is_not_read(tmp_path: Path) -> None:
    make(tmp_path, "0.png", "out/0_overlay.png")
    assert [path.name for path, _ in find(tmp_path, outputs=tmp_path / "out")[0]] == ["0.png"]


def test_images_are_found_lazily(tmp_path: Path) -> None:
    make(tmp_path, "a/0.png", "b/1.png")
    files = find_images([tmp_path], SUFFIXES, lambda path, text: None)
    assert next(files).path.name == "0.png"
    (tmp_path / "b" / "1.png").rename(tmp_path / "b" / "2.png")
    assert next(files).path.name == "2.png"


def test_a_folder_removed_while_it_is_read_is_a_problem(tmp_path: Path) -> None:
    make(tmp_path, "a/0.png", "b/1.png", "c/2.png")
    problems: list[Path] = []
    files = find_images([tmp_path], SUFFIXES, lambda path, text: problems.append(path))
    assert next(files).path.name == "0.png"
    (tmp_path / "b" / "1.png").unlink()
    (tmp_path / "b").rmdir()
    assert [image.path.name for image in files] == ["2.png"]
    assert problems == [tmp_path / "b"]


@pytest.mark.parametrize("name", ["missing.png", "x" * 300, "with\nbreak.png"])
def test_a_named_file_is_returned_even_if_it_is_missing(tmp_path: Path, name: str) -> None:
    found, _ = find(tmp_path / name)
    assert [path for path, _ in found] == [tmp_path / name]
