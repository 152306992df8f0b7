"""`moleflow ablate` in real processes, on a tiny network."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_lines import TINY
from forked import Finished, Processes, moleflow_code
from PIL import Image
from tiny_model import product_image, write_product

OPTIONS = (*TINY, "--task", "bolt", "--task", "nut")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for kind, name in enumerate(("bolt", "nut")):
        write_product(root / name / "train", "good", kind, count=5)
        for part, changed in (("good", 0), ("spot", 10)):
            (root / name / "test" / part).mkdir(parents=True)
            for number in range(2):
                image = product_image(kind, 40 + number)
                image[:changed, :changed] = np.uint8(255)
                Image.fromarray(image).save(root / name / "test" / part / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def first(processes: Processes, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    out = tmp_path_factory.mktemp("out")
    arguments = ("ablate", "score_top_k", data, *OPTIONS, "--out", out, "--markdown", out / "table.md")
    return out, processes.run(moleflow_code(*arguments))


def test_a_study_prints_its_table_and_writes_it_as_markdown(first: tuple[Path, Finished]) -> None:
    out, done = first
    assert done.status == 0, done.stderr
    assert "Patches whose mean is the image score" in done.stdout
    assert "row 4 of 4" in done.stderr
    table = (out / "table.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:] == [
        "3 (full)",
        "1",
        "5",
        "7",
    ]
    assert "98.30 / 97.83 / 54.04" in table
    assert len(list((out / "results").iterdir())) == 4
    assert len(list((out / "runs").iterdir())) == 1


def test_a_second_run_reuses_results_and_prints_json(
    processes: Processes, data: Path, first: tuple[Path, Finished]
) -> None:
    done = processes.run(moleflow_code("ablate", "score_top_k", data, *OPTIONS, "--out", first[0], "--json"))
    assert done.status == 0, done.stderr
    assert "learned from" not in done.stderr
    document = json.loads(done.stdout)
    assert [row["name"] for row in document["rows"]] == ["3", "1", "5", "7"]
    assert document["rows"][1]["result"]["model"]["score_top_k"] == 1


def test_a_killed_study_continues_where_it_stopped(
    processes: Processes, data: Path, first: tuple[Path, Finished], tmp_path: Path
) -> None:
    code = moleflow_code("ablate", "score_top_k", data, *OPTIONS, "--out", tmp_path)
    killed = processes.start(code)
    killed.wait_for(lambda: any(tmp_path.glob("runs/*/factory.safetensors")))
    killed.kill()
    assert killed.finish().status == -9
    assert not list((tmp_path / "results").iterdir())
    again = processes.run(code)
    assert again.status == 0, again.stderr
    assert "bolt: learned" not in again.stderr
    found, expected = (
        {path.name: json.loads(path.read_text())["categories"] for path in (folder / "results").iterdir()}
        for folder in (tmp_path, first[0])
    )
    assert found == expected


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (("everything", "DATA"), 2, "'everything' is not one of"),
        (("core", "DATA", "--preset", "large"), 1, "use one of main, fast, small"),
        (("core", "MISSING"), 1, "There is no folder"),
    ],
)
def test_an_error_has_advice(
    processes: Processes, data: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, hint: str
) -> None:
    places = {"DATA": data, "MISSING": tmp_path / "missing"}
    given = [places.get(argument, argument) for argument in arguments]
    done = processes.run(moleflow_code("ablate", *given, "--task", "bolt", "--out", tmp_path / "out"))
    assert done.status == status
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
