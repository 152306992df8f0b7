"""Jobs that learn products while the service serves: one trains, the others run a command in its place."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_training import COUNTS, WAITS, Says
from running import PATIENCE, Running, eventually, serve_checkpoint
from sample_images import encoded
from tiny_fixtures import tiny_backbone  # noqa: F401
from tiny_model import PLUGIN, product_image, tiny_checkpoint

from moleflow.model.files.exclusive import exclusive
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.service.teaching.runner import MAX_ATTEMPTS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "factory.safetensors", ("bolt", "nut", "gear")).path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "teaching"


@pytest.fixture
def service(path: Path, folder: Path) -> Iterator[Running]:
    with serve_checkpoint(path, teaching=folder) as running:
        yield running


def teach(service: Running, product: str, kind: int = 5, count: int = 1) -> None:
    files = [("file", (f"{seed}.png", encoded(product_image(kind, seed)))) for seed in range(count)]
    assert service.client.post(f"/tasks/{product}/images", files=files).json()["images"] == count


def start(service: Running, product: str) -> str:
    """The id of a new job for a product that has been taught."""
    answer = service.client.post(f"/tasks/{product}:train")
    assert answer.status_code == 202, answer.text
    assert service.client.get(answer.headers["location"]).json()["id"] == answer.json()["id"]
    return answer.json()["id"]


def job(service: Running, identifier: str) -> dict[str, Any]:
    return service.client.get(f"/jobs/{identifier}").json()


def wait_for(service: Running, identifier: str, state: str) -> dict[str, Any]:
    assert eventually(lambda: job(service, identifier)["state"] == state), job(service, identifier)
    return job(service, identifier)


def refusal(response: httpx.Response) -> str:
    assert (response.status_code, response.json()["type"]) == (409, "urn:moleflow:problem:job-refused")
    return response.json()["detail"]


def processes_of(folder: Path) -> list[int]:
    """The processes whose command line names a folder."""
    found = []
    for each in Path("/proc").iterdir():
        try:
            if each.name.isdecimal() and str(folder).encode() in (each / "cmdline").read_bytes():
                found.append(int(each.name))
        except OSError:
            continue
    return found


def test_a_product_is_learned_again_in_its_place_while_the_others_stay_as_they_are(path: Path, folder: Path) -> None:
    # A real training, which warns of an image that is unlike the others.
    with serve_checkpoint(path, teaching=folder, plugin=str(PLUGIN), teaching_threads=1) as service:
        before = Checkpoint.open(path).header
        teach(service, "nut", count=3)
        odd = ("odd.png", encoded(product_image(5, 91)[:, :20]))
        assert service.client.post("/tasks/nut/images", files={"file": odd}).json()["images"] == 4
        identifier = start(service, "nut")
        with httpx.stream("GET", f"{service.url}/jobs/{identifier}/events", timeout=PATIENCE) as stream:
            events = "".join(stream.iter_text()).split("\n\n")
        kinds = [event.partition("\n")[0] for event in events if event.startswith("event")]
        assert kinds[-1] == "event: end" and set(kinds[:-1]) == {"event: job"}
        ended = job(service, identifier)
        assert json.loads(events[-2].partition("data: ")[2]) == ended
        assert (ended["state"], ended["detail"]) == ("done", "It was learned, and is served.")
        assert ended["progress"]["epoch"] == ended["progress"]["epochs"] > 0
        assert "another aspect ratio" in ended["warnings"][0] and str(folder) not in ended["warnings"][0]
        after = Checkpoint.open(path).header
        served = service.client.get("/tasks").json()["tasks"]
        assert [task["sha256"] for task in served] == [task.sha256 for task in after.tasks]
        assert [task["name"] for task in served] == ["bolt", "nut", "gear"]
        assert after.tasks[1].sha256 != before.tasks[1].sha256
        assert (after.tasks[0], after.tasks[2]) == (before.tasks[0], before.tasks[2])
        assert (after.base_sha256, after.backbone_sha256) == (before.base_sha256, before.backbone_sha256)


def test_a_job_that_fails_says_why_in_the_words_of_the_training(
    service: Running, training: Says, folder: Path, path: Path
) -> None:
    training("import sys; sys.exit(f'epoch 1\\nerror: too few images in {sys.argv[1]}/data/cog for {sys.argv[4]}.')")
    teach(service, "cog")
    ended = wait_for(service, start(service, "cog"), "failed")
    assert ended["detail"] == "too few images in cog for factory.safetensors."
    assert [each["id"] for each in service.client.get("/jobs").json()["jobs"]] == [ended["id"]]
    assert not (folder / "jobs" / ended["id"] / "data").exists()


def test_one_job_runs_at_a_time_and_the_others_follow_in_order(service: Running, training: Says, folder: Path) -> None:
    training("import sys, pathlib, time\nwhile not (pathlib.Path(sys.argv[1]) / 'go').exists(): time.sleep(0.01)")
    identifiers = []
    for product in ("cog", "cam"):
        teach(service, product)
        identifiers.append(start(service, product))
    for identifier in identifiers:
        assert wait_for(service, identifier, "running")["started"] is not None
        later = identifiers[identifiers.index(identifier) + 1 :]
        assert all(job(service, each)["state"] == "waiting" for each in later)
        (folder / "jobs" / identifier / "go").touch()
        wait_for(service, identifier, "done")


def test_a_process_yields_the_processor_and_goes_first_when_memory_runs_out(service: Running, training: Says) -> None:
    training(
        "import os; memory = open('/proc/self/oom_score_adj').read().strip(); "
        "raise SystemExit(f'error: {os.nice(0)} {os.getsid(0)} {os.environ[\"MOLEFLOW_THREADS\"]} {memory}')"
    )
    teach(service, "cog")
    threads = service.settings.teaching_threads
    # Its niceness counts only within the session, where the kernel makes groups of sessions.
    assert wait_for(service, start(service, "cog"), "failed")["detail"] == f"19 {os.getsid(0)} {threads} 1000"


def test_a_killed_process_continues_and_fails_in_the_end(service: Running, training: Says) -> None:
    training("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    teach(service, "cog")
    ended = wait_for(service, start(service, "cog"), "failed")
    assert ended["attempts"] == MAX_ATTEMPTS
    assert "SIGKILL" in ended["detail"] and "memory" in ended["detail"]


def test_a_job_is_cancelled_waiting_or_running_and_only_once(
    service: Running, training: Says, folder: Path, path: Path
) -> None:
    training(WAITS)
    for product in ("cog", "cam"):
        teach(service, product)
    running, waiting = start(service, "cog"), start(service, "cam")
    wait_for(service, running, "running")
    assert eventually(lambda: len(processes_of(folder)) == 1)
    for identifier in (running, waiting):
        service.client.delete(f"/jobs/{identifier}")
        assert wait_for(service, identifier, "cancelled")["ended"] is not None
        assert "has ended already" in refusal(service.client.delete(f"/jobs/{identifier}"))
    assert not processes_of(folder)
    with exclusive(path):
        pass


def test_a_job_outlives_the_service_and_its_images_are_those_of_its_beginning(
    path: Path, folder: Path, training: Says
) -> None:
    training(WAITS)
    with serve_checkpoint(path, teaching=folder) as service:
        teach(service, "cog", count=2)
        identifier = start(service, "cog")
        wait_for(service, identifier, "running")
        service.client.delete("/tasks/cog/images")
    assert not processes_of(folder)
    training(COUNTS)
    with serve_checkpoint(path, teaching=folder) as service:
        ended = wait_for(service, identifier, "failed")
        assert (ended["detail"], ended["attempts"]) == ("cog False 2", 1)


def test_a_process_ends_with_a_service_that_is_killed(path: Path, folder: Path, training: Says) -> None:
    # The launcher asks the kernel for this; here its parent is a process that is killed.
    launch = ["-m", "moleflow.service.teaching.launch"]
    code = (
        "import os, subprocess, sys, time\n"
        f"own = [sys.executable, *{launch!r}, str(os.getpid())]\n"
        f"subprocess.Popen([*own, sys.executable, '-c', {WAITS!r}, {str(folder)!r}]); time.sleep(600)"
    )
    parent = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    try:
        assert eventually(lambda: any("launch" not in command(each) for each in processes_of(folder) if each != parent))
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    assert eventually(lambda: not processes_of(folder))


def command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return "launch"


def test_another_service_on_the_same_folder_leaves_the_jobs_to_their_owner_and_takes_them_over(
    path: Path, folder: Path, training: Says
) -> None:
    training(WAITS)
    with serve_checkpoint(path, teaching=folder) as heir:
        with serve_checkpoint(path, teaching=folder) as other:
            for each in (heir, other):
                assert eventually((folder / "jobs" / ".owner").exists)
                teach(each, "cog", count=1)
            identifier = start(other, "cog")
            assert wait_for(heir, identifier, "running")["attempts"] == 1
            time.sleep(0.2)
            assert len(processes_of(folder)) == 1
            assert "is running for 'cog' already" in refusal(heir.client.post("/tasks/cog:train"))
        assert heir.client.delete(f"/jobs/{identifier}").status_code == 200
        wait_for(heir, identifier, "cancelled")


def test_who_writes_to_the_checkpoint_excludes_every_other(service: Running, training: Says, path: Path) -> None:
    training(WAITS)
    teach(service, "cog")
    with exclusive(path):  # as `moleflow recalibrate` does
        identifier = start(service, "cog")
        assert eventually(lambda: "another process" in job(service, identifier)["detail"])
        assert job(service, identifier)["state"] == "waiting"
        assert "waits to learn 'cog'" in refusal(service.client.patch("/tasks/gear", json={"name": "cog"}))
    wait_for(service, identifier, "running")
    for response in (service.client.delete("/tasks/gear"), service.client.patch("/tasks/gear", json={"name": "x"})):
        assert f"Job {identifier} is learning 'cog'" in refusal(response)


def test_what_cannot_be_learned_again_is_refused(service: Running, training: Says) -> None:
    training("")
    for product in ("bolt", "nut"):
        teach(service, product)
    assert "learned first" in refusal(service.client.post("/tasks/bolt:train"))
    service.client.delete("/tasks/nut", params={"hide": True})
    assert "is hidden" in refusal(service.client.post("/tasks/nut:train"))
    assert "No good images of 'cam' were uploaded" in refusal(service.client.post("/tasks/cam:train"))


def test_a_product_is_learned_in_its_place_with_the_images_of_feedback(
    path: Path, folder: Path, tmp_path: Path, training: Says
) -> None:
    training(
        "import sys, pathlib; n = len(list(pathlib.Path(sys.argv[1]).rglob('*.png')));"
        " sys.exit(f'error: {sys.argv[2]} {sys.argv[3]} {n}')"
    )
    with serve_checkpoint(path, teaching=folder, feedback=tmp_path / "feedback") as service:
        for kind, verdict in ((2, "good"), (2, "good"), (1, "defect")):
            answer = service.predict(encoded(product_image(kind, 70 + kind)), map="none", task="gear").json()["id"]
            service.client.post(f"/predictions/{answer}/feedback", json={"verdict": verdict})
        assert "join them" in refusal(service.client.post("/tasks/gear:train"))
        files = [("file", (f"{seed}.png", encoded(product_image(5, seed)))) for seed in range(3)]
        assert service.client.post("/tasks/gear/images", files=files).json()["images"] == 5
        ended = wait_for(service, start(service, "gear"), "failed")
        assert ended["detail"] == "gear True 4"
        assert (ended["images"], ended["feedback_images"]) == (4, 1)


def test_the_images_follow_a_product_to_its_new_name(service: Running) -> None:
    teach(service, "gear")
    service.client.patch("/tasks/gear", json={"name": "cog wheel"})
    assert len(service.client.get("/tasks/cog wheel/images").json()["images"]) == 1
    assert service.client.get("/tasks/gear/images").json()["images"] == []


def test_a_job_whose_file_is_damaged_is_left_out(service: Running, training: Says, folder: Path) -> None:
    training("")
    teach(service, "cog")
    identifier = start(service, "cog")
    wait_for(service, identifier, "done")
    (folder / "jobs" / identifier / "job.json").write_text("{")
    assert service.client.get("/jobs").json() == {"jobs": []}
    for unknown in (identifier, ".owner", "one"):
        assert service.client.get(f"/jobs/{unknown}").status_code == 404


def test_the_events_of_a_job_end_when_the_service_stops(path: Path, folder: Path, training: Says) -> None:
    training(WAITS)
    with serve_checkpoint(path, teaching=folder, shutdown_timeout_seconds=30) as service:
        teach(service, "cog")
        identifier = start(service, "cog")
        with httpx.stream("GET", f"{service.url}/jobs/{identifier}/events", timeout=PATIENCE) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: job"
            began = time.monotonic()
            service.server.should_exit = True
            assert "event: end" not in list(lines)
            assert time.monotonic() - began < 15
