"""Sample images that the page offers."""

from pathlib import Path

import pytest
from dummy import DummyDetector
from fastapi.testclient import TestClient

from moleflow.service.api.app import create_app
from moleflow.service.settings import Settings


def client(samples: Path | None) -> TestClient:
    settings = Settings(checkpoint=Path("dummy"), samples=samples)
    return TestClient(create_app(settings, DummyDetector()), base_url="http://localhost")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "samples" / "deeper.png").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "notes.txt", "samples/c d.png", "samples/secret.txt"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path / "samples"


def test_only_image_files_of_the_folder_itself_are_listed(folder: Path) -> None:
    assert client(folder).get("/samples").json() == {"samples": ["c d.png"]}


def test_a_listed_image_is_sent_as_it_is(folder: Path) -> None:
    response = client(folder).get("/samples/c%20d.png")
    assert (response.content, response.headers["content-type"]) == (b"samples/c d.png", "image/png")


@pytest.mark.parametrize("name", ["secret.txt", "deeper.png", "..%2Fb.png", "%2e%2e/b.png", "missing.png"])
def test_no_other_file_is_sent(folder: Path, name: str) -> None:
    assert client(folder).get(f"/samples/{name}").status_code == 404


def test_no_more_samples_are_offered_than_the_page_has_room_for(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.png").touch()
    assert client(tmp_path).get("/samples").json()["samples"] == [f"{number:02}.png" for number in range(12)]


def test_without_a_folder_there_are_no_samples() -> None:
    assert client(None).get("/samples").json() == {"samples": []}
    assert client(None).get("/samples/a.png").status_code == 404


def test_a_folder_removed_after_the_start_offers_nothing(folder: Path) -> None:
    service = client(folder)
    (folder / "deeper.png").rmdir()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert service.get("/samples").json() == {"samples": []}
