"""Decoding in processes: identical pixels, bounded time and memory, and restarts."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from running import PATIENCE, eventually, run_server
from sample_images import encoded, sample_image

import moleflow.service.decoding.pool
from moleflow.model.errors import ImageTooLargeError, UnsupportedImageError
from moleflow.model.images.decode import open_for_model, open_rgb
from moleflow.service.decoding.pool import DecoderPool
from moleflow.service.decoding.wire import read_array, receive, send, write_memory_file
from moleflow.service.errors import NotReadyError, OverloadedError

SIDE = 64
IMAGE = encoded(sample_image())
SLOW = encoded(np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8), compress_level=1)
"""A PNG that takes tenths of a second to decode."""


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    """Two processes with generous limits, shared by the tests of this module."""
    found = DecoderPool(2, seconds=60, max_pixels=10_000_000)
    found.start()
    yield found
    found.close()


def processes(of: int | None = None) -> list[int]:
    """The running decoder processes of this process (or of ``of``)."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _is_decoder(entry, of)]


def _is_decoder(entry: Path, parent: int | None) -> bool:
    try:
        command, status = (entry / "cmdline").read_bytes(), (entry / "stat").read_text()
    except OSError:
        return False
    started_by = int(status.rpartition(")")[2].split()[1])
    return b"moleflow.service.decoding.process" in command and started_by == (parent or os.getpid())


def one() -> DecoderPool:
    """A single process."""
    return DecoderPool(1, seconds=60, max_pixels=10_000_000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP", "BMP", "TIFF", "GIF"])
def test_a_process_decodes_to_identical_pixels(decoders: DecoderPool, kind: str) -> None:
    data = encoded(sample_image(300, 200, spot=True), kind)
    here, there = open_for_model(data, SIDE, max_pixels=10**6), decoders.decode(data, SIDE)
    assert np.array_equal(here.pixels, there.pixels)
    assert here.pixels.dtype == there.pixels.dtype
    assert (here.width, here.height) == (there.width, there.height)


def test_full_size_images_can_be_decoded(decoders: DecoderPool) -> None:
    assert np.array_equal(decoders.open_rgb(SLOW, 65_535), open_rgb(SLOW))


def test_errors_of_the_process_are_raised_in_the_service(decoders: DecoderPool) -> None:
    with pytest.raises(UnsupportedImageError, match="is not a PNG"):
        decoders.decode(b"no image", SIDE)
    with pytest.raises(ImageTooLargeError, match="at most 10,000,000"):
        decoders.decode(encoded(np.zeros((4000, 4000), np.uint8)), SIDE)


def test_many_threads_share_the_processes(decoders: DecoderPool) -> None:
    images = [sample_image(100 + index, 50) for index in range(12)]
    found: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        found[index] = decoders.open_rgb(encoded(images[index]), 65_535)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert all(np.array_equal(found[index], image) for index, image in enumerate(images))


def test_an_image_that_takes_too_long_is_rejected_and_the_next_one_decoded() -> None:
    replaced: list[None] = []
    decoders = DecoderPool(1, seconds=0.05, max_pixels=10**8, on_restart=lambda: replaced.append(None))
    try:
        with pytest.raises(ImageTooLargeError, match=r"more than 0.05 s of CPU time"):
            decoders.decode(SLOW, SIDE)
        assert replaced == [None]
        assert decoders.decode(IMAGE, SIDE).width == 90
    finally:
        decoders.close()


def test_an_image_that_takes_too_much_memory_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moleflow.service.decoding.pool, "_MEMORY_PER_PIXEL", 0)
    decoders = DecoderPool(1, seconds=60, max_pixels=10**9)
    try:
        with pytest.raises(ImageTooLargeError, match="too large to decode|too much memory"):
            decoders.decode(encoded(np.zeros((7_000, 7_000, 3), np.uint8), compress_level=1), SIDE)
        assert decoders.decode(IMAGE, SIDE).width == 90
    finally:
        decoders.close()


def test_a_killed_process_loses_no_image() -> None:
    before = set(processes())
    decoders = one()
    decoders.start()
    try:
        (mine,) = set(processes()) - before
        os.kill(mine, signal.SIGKILL)
        assert decoders.decode(IMAGE, SIDE).width == 90
    finally:
        decoders.close()


def test_a_hanging_process_is_replaced() -> None:
    before = set(processes())
    decoders = DecoderPool(1, seconds=0.2, max_pixels=10**6)
    decoders.start()
    try:
        decoders.decode(IMAGE, SIDE)
        (mine,) = set(processes()) - before
        os.kill(mine, signal.SIGSTOP)
        assert decoders.decode(IMAGE, SIDE).width == 90
        assert mine not in processes()
    finally:
        decoders.close()


def test_processes_ignore_signals_to_stop() -> None:
    before = set(processes())
    decoders = one()
    decoders.start()
    try:
        decoders.decode(IMAGE, SIDE)
        (mine,) = set(processes()) - before
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(mine, number)
        assert decoders.decode(IMAGE, SIDE).width == 90
        assert mine in processes()
    finally:
        decoders.close()


def test_an_image_that_crashes_the_decoder_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = one()
    before = set(processes())
    monkeypatch.setattr(moleflow.service.decoding.pool, "send", lambda *_: _crash(set(processes()) - before))
    try:
        with pytest.raises(UnsupportedImageError, match="crashes the decoder"):
            decoders.decode(IMAGE, SIDE)
    finally:
        decoders.close()


def _crash(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSEGV)


def test_closing_ends_the_processes_and_fails_waiting_callers() -> None:
    before = set(processes())
    decoders = one()
    decoders.start()
    decoders.close()
    assert set(processes()) == before
    with pytest.raises(NotReadyError):
        decoders.decode(IMAGE, SIDE)


def test_without_descriptors_the_client_gets_a_retry_time(
    decoders: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(moleflow.service.decoding.pool, "write_memory_file", fail)
    with pytest.raises(OverloadedError, match="Too many open files"):
        decoders.decode(IMAGE, SIDE)
    monkeypatch.undo()
    assert decoders.decode(IMAGE, SIDE).width == 90


def test_processes_exit_when_the_service_is_killed() -> None:
    program = (
        "import sys; from moleflow.service.decoding.pool import DecoderPool;"
        "decoders = DecoderPool(2, seconds=60, max_pixels=1000); decoders.start();"
        "print('up', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        orphans = processes(parent.pid)
        assert len(orphans) == 2
        parent.kill()
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))


def test_the_service_responds_while_an_image_exceeds_its_time_limit() -> None:
    with run_server(decode_timeout_seconds=0.05) as running:
        answers: list[int] = []
        sender = threading.Thread(target=lambda: answers.append(running.predict(SLOW).status_code))
        sender.start()
        assert running.client.get("/health/live").status_code == 200
        sender.join(PATIENCE)
        assert answers == [413]
        assert running.predict(IMAGE).status_code == 200
        assert running.metric("moleflow_decoder_restarts_total") == 1


@pytest.mark.parametrize(
    ("shape", "dtype"), [((5,), "|u1"), ((2, 2), "<u2"), ((4,), "|O"), ((4,), "|S1"), ((-4,), "|u1")]
)
def test_pixels_that_do_not_match_their_shape_are_rejected(shape: tuple[int, ...], dtype: str) -> None:
    file = write_memory_file(b"four")
    try:
        with pytest.raises(ValueError, match="4 bytes do not match"):
            read_array(file, shape, dtype)
    finally:
        os.close(file)


@pytest.mark.parametrize("text", [b"\xff\xff\xff\xff{}", b"\0\0\0\x02[", b"\0\0", b"\0\0\0\x02}{"])
def test_malformed_messages_are_rejected(text: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(text)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ValueError):  # raised by json or by us
            receive(ours)


def test_a_message_carries_its_file() -> None:
    ours, theirs = socket.socketpair()
    file = write_memory_file(b"abc")
    with ours, theirs:
        send(theirs, {"number": 1}, file)
        message = receive(ours)
        assert message is not None
        assert message[0] == {"number": 1}
        assert message[1] is not None
        assert read_array(message[1]).tobytes() == b"abc"
        os.close(message[1])
        theirs.close()
        assert receive(ours) is None
    os.close(file)


def test_output_of_image_libraries_does_not_fill_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    dots = np.random.default_rng(0).integers(0, 2, (200, 300)).astype(bool)
    data = bytearray(encoded(dots, "TIFF", compression="group4"))
    data[100:140] = bytes(range(40, 80))
    decoders = one()
    with contextlib.suppress(UnsupportedImageError):
        decoders.decode(bytes(data), SIDE)
    decoders.close()
    assert capfd.readouterr().err == ""


def test_a_decoder_process_is_not_instrumented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/lib/opentelemetry/instrumentation/auto_instrumentation:/mine")
    paths = moleflow.service.decoding.pool._environment()["PYTHONPATH"].split(":")
    assert (len(paths), paths[1]) == (2, "/mine")
