"""Decoding takes a bounded number of bytes per pixel, for every kind of file."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import png
from PIL import Image

WIDTH, HEIGHT = 3001, 2999
"""Nine megapixels, not divisible by the JPEG scale denominators."""

BYTES_A_PIXEL = 14
"""The documented 13, plus one for the interpreter."""

MEASURE = """
import sys
from moleflow.model.images.decode import open_for_model

def peak():
    # Not getrusage: a new process inherits its parent's peak.
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) * 1024

data = open(sys.argv[1], "rb").read()
before = peak()
open_for_model(data, 64)
print(peak() - before)
"""


def encoded(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = Image.new("RGBA", (WIDTH, HEIGHT), (10, 200, 30, 100))
    buffer = io.BytesIO()
    match kind:
        case "turned PNG with alpha":
            rgba.save(buffer, "PNG", compress_level=1, exif=exif)
        case "turned JPEG":
            rgba.convert("RGB").save(buffer, "JPEG", exif=exif)
        case "progressive CMYK JPEG":
            rgba.convert("RGB").convert("CMYK").save(buffer, "JPEG", progressive=True)
        case "WebP with alpha":
            rgba.save(buffer, "WebP", method=0)
        case "PNG of 16-bit RGB":
            return png(np.zeros((HEIGHT, WIDTH, 3), np.uint16), 16, 2)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind",
    ["turned PNG with alpha", "turned JPEG", "progressive CMYK JPEG", "WebP with alpha", "PNG of 16-bit RGB"],
)
def test_decoding_takes_a_bounded_number_of_bytes_per_pixel(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(kind))
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    assert WIDTH * HEIGHT < int(done.stdout) < BYTES_A_PIXEL * WIDTH * HEIGHT
