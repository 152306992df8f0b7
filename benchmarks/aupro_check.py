"""Is AUPRO right? Compares it with a plain reference written from the definition, and with anomalib where it is there.

    python benchmarks/aupro_check.py [--cases N] [--images N] [--output FILE.json]

The reference takes every distinct score as a threshold, one after another; finds regions with SciPy instead of
scikit-image; and adds up trapezoids, the last one cut at the limit. It is slow, and nothing is shared with what it
checks. anomalib (2.7; a version that keeps the metric elsewhere is skipped with a line) computes in float32 and is
given more room. Then a category of ``--images`` images of 256 × 256 is measured for time and memory. Exit status 1
when a difference is larger than stated.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from result_files import write_result
from scipy import ndimage

from moleflow.training.evaluation.aupro import FPR_LIMIT
from moleflow.training.evaluation.metrics import PixelScores

TOLERANCE = 1e-9
"""Between two exact computations: rounding in float64."""

ANOMALIB_TOLERANCE = 1e-5
"""anomalib adds up in float32."""

Case = tuple[np.ndarray, np.ndarray]
"""Maps ``(n, side, side)`` float32 and masks of that shape, bool."""

Check = dict[str, Any]
"""A comparison: its ``name``, number of ``cases``, largest ``difference``, the ``most`` it may be, and ``right``."""


def reference(maps: np.ndarray, masks: np.ndarray, limit: float = FPR_LIMIT) -> float:
    """AUPRO by the definition: at every threshold, all pixels are looked at again."""
    regions = []
    for scores, mask in zip(maps, masks, strict=True):
        numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [scores[numbers == number] for number in range(1, count + 1)]
    free = maps[~masks]
    area, last_rate, last_overlap = 0.0, 0.0, 0.0
    for threshold in np.unique(maps)[::-1]:
        rate = float((free >= threshold).mean())
        overlap = float(np.mean([(region >= threshold).mean() for region in regions]))
        if rate > limit:
            overlap = last_overlap + (overlap - last_overlap) * (limit - last_rate) / (rate - last_rate)
            rate = limit
        area += (rate - last_rate) * (overlap + last_overlap) / 2
        last_rate, last_overlap = rate, overlap
        if rate >= limit:
            break
    return area / limit


def ours(maps: np.ndarray, masks: np.ndarray) -> float:
    """AUPRO as the evaluation computes it."""
    pixels = PixelScores(side=maps.shape[1])
    for scores, mask in zip(maps, masks, strict=True):
        pixels.add(scores, mask)
    found = pixels.aupro()
    assert found is not None
    return found


def random_case(rng: np.random.Generator, *, images: int, side: int, levels: int | None) -> Case:
    """Blobs as defects, scores that tell them from the rest more or less; rounded to ``levels`` steps for ties."""
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=(side, side)), side / 16) for _ in range(images)])
    masks = fields > np.quantile(fields, 0.93)
    masks &= rng.random(masks.shape) < 0.97  # ragged edges, single pixels and diagonal neighbours
    masks[0, 0, 0] = True
    maps = rng.normal(size=masks.shape) + masks * rng.uniform(0, 3)
    if levels is not None:
        maps = np.round(maps * levels / 6)
    return maps.astype(np.float32), masks


def check(name: str, other: Callable[[np.ndarray, np.ndarray], float], cases: list[Case], tolerance: float) -> Check:
    """The largest difference over all cases, and whether it is as small as it should be."""
    largest = max(abs(ours(*case) - other(*case)) for case in cases)
    return {"name": name, "cases": len(cases), "difference": largest, "most": tolerance, "right": largest <= tolerance}


def anomalib_aupro() -> Callable[[np.ndarray, np.ndarray], float] | None:
    """anomalib's metric as a function, or ``None`` with a line that says why."""
    try:
        import torch
        from anomalib.metrics.aupro import _AUPRO
    except ImportError as error:
        print(f"anomalib: skipped, it is not installed here ({error})")
        return None

    def measure(maps: np.ndarray, masks: np.ndarray) -> float:
        metric = _AUPRO(fpr_limit=FPR_LIMIT)
        metric.update(torch.from_numpy(maps), torch.from_numpy(masks.astype(np.int64)))
        return float(metric.compute())

    return measure


def measure_large(images: int) -> str:
    """Time and memory of one large category, in words."""
    rng = np.random.default_rng(0)
    pixels = PixelScores()
    start = time.perf_counter()
    for number in range(images):
        mask = np.zeros((pixels.side, pixels.side), bool)
        mask[40:90, 40:90] = mask[150:170, 100:200] = bool(number % 3)
        pixels.add(rng.random((pixels.side, pixels.side), dtype=np.float32) + mask / np.float32(2), mask)
    collected = time.perf_counter()
    value = pixels.aupro()
    done = time.perf_counter()
    peak = next(
        line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return (
        f"{images} images of {pixels.side} × {pixels.side}: AUPRO {value:.4f}, collected in "
        f"{collected - start:.1f} s, computed in {done - collected:.1f} s, peak memory {int(peak) / 1e6:.2f} GB"
    )


def markdown(checks: Sequence[Check], large: str) -> str:
    """The result for people."""
    lines = ["| AUPRO against | cases | largest difference | at most | |", "|---|---|---|---|---|"]
    lines += [
        f"| {each['name']} | {each['cases']} | {each['difference']:.1e} | {each['most']:.0e} "
        f"| {'holds' if each['right'] else '**fails**'} |"
        for each in checks
    ]
    return "\n".join([*lines, "", f"{large}."]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40, help="random cases of each kind (default: 40)")
    parser.add_argument("--images", type=int, default=578, help="of the large category (default: 578)")
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it, with suffix .md")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    cases = [random_case(rng, images=3, side=24, levels=levels) for levels in [None, 4, 30] * options.cases]
    checks = [check("reference by definition", reference, cases, TOLERANCE)]
    theirs = anomalib_aupro()
    if theirs is not None:
        checks.append(check("anomalib's metric", theirs, cases, ANOMALIB_TOLERANCE))
    large = measure_large(options.images)
    text = markdown(checks, large)
    if options.output:
        write_result(options.output, {"checks": checks, "large": large}, text)
    print(text)
    return int(not all(each["right"] for each in checks))


if __name__ == "__main__":
    sys.exit(main())
