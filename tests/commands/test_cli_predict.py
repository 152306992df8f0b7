"""`moleflow predict` on folders and unusable files, in real processes."""

import contextlib
import json
import os
import pty
from pathlib import Path

import pytest
from forked import Finished, Processes, moleflow_code
from PIL import Image
from tiny_model import PLUGIN, damage, product_image, tiny_checkpoint

PRODUCTS = ("bolt", "nut", "gear")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("cli") / "factory.safetensors").path


def put(path: Path, kind: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(product_image(kind, 50)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images in nested folders, and other files."""
    root = tmp_path / "images"
    for number in range(8):
        put(root / f"{number}.png", number % 3)
    put(root / "line2" / "10.png")
    put(root / "line2" / "9.png")
    put(root / ".hidden.png")
    (root / "notes.txt").write_text("no image")
    (root / "line2" / "back").symlink_to(root)
    return root


def predict(processes: Processes, checkpoint: Path, *arguments: object, before: str = "") -> Finished:
    return processes.run(moleflow_code("predict", checkpoint, *arguments, "--plugin", PLUGIN, before=before))


def test_a_folder_yields_one_line_per_image_in_natural_order(
    processes: Processes, checkpoint: Path, folder: Path
) -> None:
    done = predict(processes, checkpoint, folder, "--json")
    assert done.status == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [*(folder / f"{number}.png" for number in range(8)), folder / "line2/9.png", folder / "line2/10.png"]
    assert [answer["path"] for answer in answers] == list(map(str, expected))
    assert [answer["task"]["name"] for answer in answers[:3]] == list(PRODUCTS)
    assert done.stderr == ""


def test_overlays_of_a_folder_keep_its_structure(
    processes: Processes, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    out = folder / "overlays"  # inside the folder of images, but skipped in the next run
    for _ in range(2):
        done = predict(processes, checkpoint, folder, "--save-overlay", out)
        assert done.status == 0, done.stderr
        assert len(done.stdout.splitlines()) == 10
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == [*(f"{number}_overlay.png" for number in range(8)), "line2/10_overlay.png", "line2/9_overlay.png"]


def test_output_begins_before_all_images_are_read(processes: Processes, checkpoint: Path, tmp_path: Path) -> None:
    # The ninth image waits until the first eight are printed.
    for number in range(9):
        put(tmp_path / "images" / f"{number}.png")
    seen = tmp_path / "seen"
    before = f"""
import builtins, pathlib
import moleflow.model.files.regular_file as module
plain, count = module.read_regular_file, []
def read(path, limit=None):
    if path.name == "8.png":
        import os
        pathlib.Path({str(seen)!r}).write_text(str(os.fstat(1).st_size))
    return plain(path, limit)
module.read_regular_file = read
"""
    done = predict(processes, checkpoint, tmp_path / "images", before=before)
    assert done.status == 0, done.stderr
    lines = done.stdout.splitlines(keepends=True)
    assert int(seen.read_text()) == len("".join(lines[:8]).encode())


def test_unreadable_files_are_named_and_counted_and_do_not_stop_the_others(
    processes: Processes, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "3.png").write_bytes(b"no image")
    (folder / "4.png").unlink()
    os.mkfifo(folder / "4.png")
    (folder / "5.png").unlink()
    (folder / "5.png").symlink_to("5.png")
    (tmp_path / "empty").mkdir()
    missing = (tmp_path / "missing.png", tmp_path / ("x" * 300), tmp_path / "forged\n/x: good.png")
    done = predict(processes, checkpoint, folder, *missing, tmp_path / "empty", "/dev/zero")
    assert done.status == 1
    assert len(done.stdout.splitlines()) == 7
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    for hint in (
        "3.png: The image is not a PNG",
        "4.png: cannot be read: it is a FIFO",
        "5.png: cannot be read: Too many levels",
        "missing.png: cannot be read: No such file",
        "File name too long",
        r"forged\n/x: good.png: cannot be read",
        "empty: the folder contains no image",
        "/dev/zero: cannot be read: it is a FIFO or a device",
        "8 images or folders could not be used",
    ):
        assert any(hint in line for line in lines), hint
    assert len(lines) == 9


def test_an_empty_folder_is_an_error(processes: Processes, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = predict(processes, checkpoint, tmp_path / "empty")
    assert (done.status, done.stdout) == (1, "")
    assert "the folder contains no image" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_given_twice_is_processed_once(processes: Processes, checkpoint: Path, tmp_path: Path) -> None:
    image = put(tmp_path / "0.png")
    done = predict(processes, checkpoint, image, image)
    assert (done.status, len(done.stdout.splitlines())) == (0, 1)


def test_undecodable_names_are_printed_and_their_json_is_valid(
    processes: Processes, checkpoint: Path, tmp_path: Path
) -> None:
    image = put(tmp_path / "0.png")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/\xff\n\x1b[31m.png"))
    odd.parent.mkdir()
    image.rename(odd)
    done = predict(processes, checkpoint, odd.parent, "--save-overlay", tmp_path / "out")
    assert done.status == 0, done.stderr
    assert done.stdout.startswith(str(odd.parent) + r"/\xff\n\x1b[31m.png: ")
    assert len(done.stdout.splitlines()) == 1
    assert len(list((tmp_path / "out").iterdir())) == 1
    done = predict(processes, checkpoint, odd.parent, "--json")
    assert json.loads(done.stdout)["path"].endswith("\\xff\n\x1b[31m.png")


@pytest.mark.parametrize("target", ["file", "file/below", "/dev/null", "images", "/proc/nowhere"])
def test_an_invalid_overlay_folder_is_reported_before_the_work(
    processes: Processes, checkpoint: Path, tmp_path: Path, target: str
) -> None:
    image = put(tmp_path / "images" / "0.png")
    (tmp_path / "file").write_text("precious")
    done = predict(processes, checkpoint, image.parent, "--save-overlay", tmp_path / target)
    assert (done.status, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert (tmp_path / "file").read_text() == "precious"


def test_an_overlay_name_that_is_too_long_affects_only_its_image(
    processes: Processes, checkpoint: Path, tmp_path: Path
) -> None:
    put(tmp_path / "images" / ("a" * 250 + ".png"))
    put(tmp_path / "images" / "b.png")
    done = predict(processes, checkpoint, tmp_path / "images", "--save-overlay", tmp_path / "out")
    assert done.status == 1
    assert len(done.stdout.splitlines()) == 2
    assert "the overlay cannot be written: File name too long" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b_overlay.png"]


def test_a_full_disk_ends_predict_with_one_error_and_no_partial_overlay(
    processes: Processes, checkpoint: Path, tmp_path: Path
) -> None:
    big = put(tmp_path / "images" / "0.png")
    Image.fromarray(product_image(0, 50)).resize((900, 900)).save(big)
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    done = predict(processes, checkpoint, big.parent, "--save-overlay", tmp_path / "out", before=before)
    assert done.status == 1
    assert done.stderr.splitlines()[-1].startswith("error: the overlay ")
    assert "ulimit -f" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unknown_product_is_reported_even_if_no_image_can_be_read(
    processes: Processes, checkpoint: Path, tmp_path: Path
) -> None:
    done = predict(processes, checkpoint, tmp_path / "missing.png", "--task", "screw")
    assert done.status == 1
    assert "learned: bolt, nut, gear" in done.stderr


def test_a_leading_tilde_is_expanded_where_the_shell_does_not(
    processes: Processes, checkpoint: Path, tmp_path: Path
) -> None:
    put(tmp_path / "0.png")
    done = predict(
        processes,
        checkpoint,
        "~/0.png",
        "--save-overlay=~/out",
        before=f"import os; os.environ['HOME'] = {str(tmp_path)!r}",
    )
    assert done.status == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0_overlay.png"]


def test_a_terminal_shows_a_progress_bar_and_results_go_to_standard_output(
    processes: Processes, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    name, out = os.ttyname(theirs), tmp_path / "results"
    before = (
        f"import os; os.dup2(os.open({name!r}, os.O_RDWR | os.O_NOCTTY), 2)\n"
        f"os.dup2(os.open({str(out)!r}, os.O_WRONLY | os.O_CREAT), 1); os.environ['TERM'] = 'xterm'"
    )
    process = processes.start(moleflow_code("predict", checkpoint, folder, "--plugin", PLUGIN, before=before))
    shown = b""
    os.set_blocking(ours, False)

    def read() -> bool:
        nonlocal shown
        with contextlib.suppress(BlockingIOError):
            shown += os.read(ours, 65536)
        return False

    process.wait_for(read)
    read()
    os.close(theirs)
    os.close(ours)
    assert process.finish().status == 0
    assert b"/10" in shown
    assert len(out.read_text().splitlines()) == 10


def test_a_damaged_expert_affects_only_images_of_its_product(
    processes: Processes, tmp_path: Path, folder: Path
) -> None:
    path = tmp_path / "damaged.safetensors"
    tiny_checkpoint(path)
    damage(path, "tasks.1.expert")
    done = predict(processes, path, folder)
    assert done.status == 1
    assert "Traceback" not in done.stderr
    assert done.stdout.count("bolt") == 5
    assert done.stdout.count("gear") == 2
    assert "nut" not in done.stdout
    problems = [line for line in done.stderr.splitlines() if line.startswith("error: ") and "'nut' is damaged" in line]
    assert len(problems) == 3


def test_non_finite_numbers_are_an_error_and_never_a_verdict(
    processes: Processes, checkpoint: Path, folder: Path
) -> None:
    before = (
        "import torch, moleflow.model.flow.merged\n"
        "moleflow.model.flow.merged.MergedExpert.forward = lambda self, x: torch.full(x.shape[:3], float('nan'))"
    )
    done = predict(processes, checkpoint, folder, before=before)
    assert done.status == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("not finite") == 10
