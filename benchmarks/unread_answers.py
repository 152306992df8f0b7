"""How much memory does the service hold for clients that ask for large maps and never read them?

    python benchmarks/unread_answers.py [--clients 16] [--megapixels 20] [--seconds 60]

The model is a stand-in, so that what is held is the images and the answers alone.
"""

import argparse
import io
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]

SERVE = """
import moleflow.service.api.app
from dummy import DummyDetector
from moleflow.service.server import serve
from moleflow.service.settings import Settings
moleflow.service.api.app.load_predictor = lambda settings: DummyDetector()
serve(Settings(checkpoint="dummy", port=0, log_level="error"), on_ready=lambda url, _: print(url, flush=True))
"""

FORMS = {"map=npy in JSON": ("?map=npy", ""), "bare map": ("", "Accept: application/x-npy\r\n")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--megapixels", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=60, help="how long the memory is watched")
    options = parser.parse_args()
    side = round((options.megapixels * 1e6) ** 0.5)
    file = io.BytesIO()
    Image.new("RGB", (side, side), (90, 90, 90)).save(file, "JPEG")
    print("| answer | idle, MB | peak, MB | at the end, MB |\n|---|---|---|---|")
    for name, (query, header) in FORMS.items():
        idle, peak, end = measure(file.getvalue(), query, header, options.clients, options.seconds)
        print(f"| {name} | {idle} | {peak} | {end} |", flush=True)


def measure(image: bytes, query: str, header: str, clients: int, seconds: float) -> tuple[int, int, int]:
    """Resident memory in MB: before the clients come, at most while they are there, and at the end."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "service")])}
    command = [sys.executable, "-c", SERVE]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as service, ExitStack() as stack:
        stack.callback(service.kill)
        assert service.stdout is not None
        address = ("127.0.0.1", int(service.stdout.readline().rsplit(":", 1)[1]))
        idle = peak = resident_megabytes(service.pid)
        head = (
            f"POST /predict{query} HTTP/1.1\r\nHost: localhost\r\n{header}"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
        )
        for _ in range(clients):
            stack.enter_context(socket.create_connection(address)).sendall(head.encode() + image)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            peak = max(peak, resident_megabytes(service.pid))
            time.sleep(0.1)
        return idle, peak, resident_megabytes(service.pid)


def resident_megabytes(process: int) -> int:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) // 1024


if __name__ == "__main__":
    main()
