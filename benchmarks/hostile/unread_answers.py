"""How much memory does the service hold for clients that request large maps and never read them?

    python -m benchmarks unread_answers [--clients 16] [--megapixels 20] [--seconds 60] [--output FILE.json]

The model is the tests' stand-in, so that only the images and the answers take memory.
"""

import io
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from PIL import Image

from benchmarks.shared.command import add_output, finish, make_parser
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.process_tree import usage
from benchmarks.shared.subprocesses import environment
from moleflow.training.report.markdown import markdown_table

SERVE = """
import moleflow.service.api.app
from tests.support.dummy import DummyDetector
from moleflow.service.server import serve
from moleflow.service.settings import Settings
moleflow.service.api.app.load_predictor = lambda settings: DummyDetector()
serve(Settings(checkpoint="dummy", port=0, log_level="error"), on_ready=lambda url, _: print(url, flush=True))
"""

FORMS = {"map=npy in JSON": ("?map=npy", ""), "bare map": ("", "Accept: application/x-npy\r\n")}
"""Response formats: the query and the header of each."""


def measure(image: bytes, query: str, header: str, clients: int, seconds: float) -> list[int]:
    """Resident memory in MB: before the clients connect, at the peak, and at the end."""
    command = [sys.executable, "-c", SERVE]
    with (
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as service,
        ExitStack() as stack,
    ):
        stack.callback(service.kill)
        assert service.stdout is not None
        url = service.stdout.readline()
        if not url:
            raise BenchmarkError("the service did not start; see its output above.")
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        idle = peak = _megabytes(service.pid)
        head = (
            f"POST /predict{query} HTTP/1.1\r\nHost: localhost\r\n{header}"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
        )
        for _ in range(clients):
            stack.enter_context(socket.create_connection(address)).sendall(head.encode() + image)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            peak = max(peak, _megabytes(service.pid))
            time.sleep(0.1)
        return [idle, peak, _megabytes(service.pid)]


def _megabytes(process: int) -> int:
    found = usage(process)
    if found is None:
        raise BenchmarkError("the service ended while its memory was watched; see its output above.")
    return found.resident // 2**20


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("unread_answers", __doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--megapixels", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=60, help="how long the memory is watched")
    add_output(parser)
    options = parser.parse_args(arguments)
    side = round((options.megapixels * 1e6) ** 0.5)
    file = io.BytesIO()
    Image.new("RGB", (side, side), (90, 90, 90)).save(file, "JPEG")
    found = {name: measure(file.getvalue(), *form, options.clients, options.seconds) for name, form in FORMS.items()}
    table = markdown_table(
        ["answer", "idle, MB", "peak, MB", "at the end, MB"], [[n, *row] for n, row in found.items()]
    )
    return finish(options.output, {"resident_megabytes": found}, table)
