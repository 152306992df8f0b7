"""Good images over HTTP: what is kept, what is not, and who may."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from archives import zipped
from dummy import DummyDetector
from running import Running, run_server
from sample_images import encoded, sample_image

from moleflow.service.teaching import images, teaching
from moleflow.training.data.datasets import load_category

GOOD, OTHER = encoded(sample_image()), encoded(sample_image(90, 70), "JPEG")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "teaching"


@pytest.fixture
def school(folder: Path) -> Iterator[Running]:
    with run_server(teaching=folder, max_upload_bytes=100_000) as running:
        yield running


def teach(service: Running, *files: tuple[str, bytes], product: str = "disc") -> httpx.Response:
    return service.client.post(f"/tasks/{product}/images", files=[("file", file) for file in files])


def problem(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["type"].rpartition(":")[2]


def outcome(result: dict[str, Any]) -> tuple[str, str]:
    """A file and what became of it."""
    if result["error"]:
        return result["file"], result["error"]["type"].rpartition(":")[2]
    return result["file"], "duplicate" if result["duplicate"] else "kept"


def test_good_images_are_kept_as_they_are_where_training_reads_them(school: Running, folder: Path) -> None:
    answer = teach(school, ("1.png", GOOD), ("2.jpg", OTHER)).json()
    assert [outcome(each) for each in answer["results"]] == [("1.png", "kept"), ("2.jpg", "kept")]
    assert (answer["task"], answer["images"]) == ("disc", 2)
    assert answer["results"][1]["size"] == {"width": 90, "height": 70}
    category = load_category(folder / "images", "disc", check=False)
    assert {path.read_bytes() for path in category.train} == {GOOD, OTHER}
    listed = school.client.get("/tasks/disc/images").json()
    assert {each["id"] for each in listed["images"]} == {each["id"] for each in answer["results"]}
    assert listed["used_bytes"] == len(GOOD) + len(OTHER)
    one = school.client.get(f"/tasks/disc/images/{answer['results'][1]['id']}")
    assert (one.content, one.headers["content-type"]) == (OTHER, "image/jpeg")


def test_bad_files_are_named_and_the_others_are_kept(school: Running) -> None:
    archive = zipped({"in.png": encoded(sample_image(50, 50)), "note.txt": b"?", "deep/in.png": GOOD})
    files = ("a.png", GOOD), ("b.txt", b"no image"), ("again.png", GOOD), ("all.zip", archive), ("c.zip", archive[:50])
    results = teach(school, *files, ("large.bmp", b"BM" + bytes(100_000))).json()["results"]
    assert [outcome(each) for each in results] == [
        ("a.png", "kept"),
        ("b.txt", "unsupported-image"),
        ("again.png", "duplicate"),
        ("in.png", "kept"),
        ("note.txt", "unsupported-image"),
        ("deep/in.png", "unsupported-image"),
        ("c.zip", "unusable-archive"),
        ("large.bmp", "image-too-large"),
    ]
    assert results[2]["id"] == results[0]["id"]
    assert len(school.client.get("/tasks/disc/images").json()["images"]) == 2


def test_an_archive_or_an_image_may_be_the_body(school: Running) -> None:
    for body, kind in ((zipped({"a.png": GOOD}), "application/zip"), (OTHER, "image/jpeg")):
        sent = school.client.post("/tasks/disc/images", content=body, headers={"content-type": kind})
        assert [outcome(each)[1] for each in sent.json()["results"]] == ["kept"]


def test_images_are_deleted_one_by_one_or_all(school: Running) -> None:
    one, two = (each["id"] for each in teach(school, ("1.png", GOOD), ("2.jpg", OTHER)).json()["results"])
    left = school.client.delete(f"/tasks/disc/images/{one}").json()
    assert [each["id"] for each in left["images"]] == [two]
    assert problem(school.client.delete(f"/tasks/disc/images/{one}")) == (404, "unknown-image")
    assert problem(school.client.get("/tasks/disc/images/..%2F..%2F..%2Fdisc")) in {
        (404, "unknown-image"),
        (404, "not-found"),
    }
    assert school.client.delete("/tasks/disc/images").json()["images"] == []


def test_images_of_feedback_are_listed_and_can_be_looked_at_and_deleted(folder: Path, tmp_path: Path) -> None:
    with run_server(teaching=folder, feedback=tmp_path / "feedback") as service:
        answer = service.predict(GOOD, map="none").json()["id"]
        for verdict in ("defect", "good"):
            service.client.post(f"/predictions/{answer}/feedback", json={"verdict": verdict})
            listed = service.client.get("/tasks/green/images").json()["images"]
            assert [each["source"] for each in listed] == (["feedback"] if verdict == "good" else [])
        assert service.client.get(f"/tasks/green/images/{listed[0]['id']}").content == GOOD
        assert service.client.delete(f"/tasks/green/images/{listed[0]['id']}").json()["images"] == []


def test_the_folder_is_bounded_and_what_fits_is_kept(folder: Path) -> None:
    with run_server(teaching=folder, teaching_bytes=len(GOOD) + 10) as service:
        results = teach(service, ("1.png", GOOD), ("2.jpg", OTHER), ("again.png", GOOD)).json()["results"]
        assert [outcome(each)[1] for each in results] == ["kept", "teaching-failed", "duplicate"]
        assert "MOLEFLOW_TEACHING_BYTES" in results[1]["error"]["detail"]


def test_a_disk_that_is_full_is_said(school: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(images, "atomic_write", full)
    (result,) = teach(school, ("1.png", GOOD)).json()["results"]
    assert result["error"]["status"] == 507
    assert "No space left on device" in result["error"]["detail"]
    assert "/" not in result["error"]["detail"]


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with run_server(teaching=tmp_path / "file") as service:
        assert problem(service.client.get("/jobs")) == (507, "teaching-failed")
        assert problem(teach(service, ("1.png", GOOD))) == (507, "teaching-failed")


@pytest.mark.parametrize("name", [".hidden", "a%0Ab", "x" * 300])
def test_a_name_that_no_product_can_have_is_refused(school: Running, name: str) -> None:
    assert problem(school.client.get(f"/tasks/{name}/images")) == (422, "invalid-name")


def test_without_the_setting_nothing_is_taught(service: Running) -> None:
    for response in (
        teach(service, ("1.png", GOOD)),
        service.client.get("/tasks/red/images"),
        service.client.post("/tasks/red:train"),
        service.client.get("/jobs"),
        service.client.get("/jobs/one/events"),
    ):
        assert problem(response) == (404, "teaching-off")
        assert "MOLEFLOW_TEACHING" in response.json()["detail"]


def test_a_service_without_pytorch_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "_NEEDED", ("torch_that_is_missing",))
    with run_server(teaching=folder) as service:
        for response in (teach(service, ("1.png", GOOD)), service.client.post("/tasks/disc:train")):
            assert problem(response) == (409, "job-refused")
            assert "pip install 'moleflow[torch]'" in response.json()["detail"]


def test_only_who_may_administer_may_teach_without_keys(folder: Path) -> None:
    with run_server(teaching=folder, admin="none") as service:
        for response in (teach(service, ("1.png", GOOD)), service.client.get("/jobs")):
            assert problem(response) == (403, "not-allowed")


def test_a_key_that_teaches_is_enough_whoever_may_administer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"line predict {'l' * 20}\nteacher teach {'t' * 20}\n")
    with run_server(DummyDetector(), teaching=folder, admin="none", api_keys=tmp_path / "keys") as service:
        for key, status in (("l" * 20, 403), ("t" * 20, 200)):
            service.client.headers["x-api-key"] = key
            assert teach(service, ("1.png", GOOD)).status_code == status
            assert service.client.get("/tasks/disc/images").status_code == status
            assert service.client.get("/jobs").status_code == status
