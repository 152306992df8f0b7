"""Is AUPRO right? Compares it with a plain reference written from the definition, and with anomalib's if installed.

    python -m benchmarks aupro_check [--cases N] [--images N] [--output FILE.json]

The reference takes every distinct score as a threshold, finds regions with SciPy instead of scikit-image, and sums
trapezoids, the last one cut at the limit. It is slow and shares no code with what it checks. anomalib (2.7; other
versions may be skipped, with a line) computes in float32 and gets a larger tolerance. Then a category of ``--images``
images of 256 × 256 is measured for time and memory.
"""

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from benchmarks.shared.command import Gate, add_output, finish, make_parser
from benchmarks.shared.process_tree import usage
from moleflow.training.evaluation.aupro import FPR_LIMIT
from moleflow.training.evaluation.metrics import PixelScores

TOLERANCE = 1e-9
"""Difference of two exact computations: rounding in float64."""

ANOMALIB_TOLERANCE = 1e-5
"""anomalib sums in float32."""

Case = tuple[np.ndarray, np.ndarray]
"""Maps ``(n, side, side)`` float32 and masks of that shape, bool."""


def reference(maps: np.ndarray, masks: np.ndarray, limit: float = FPR_LIMIT) -> float:
    """AUPRO by the definition: every threshold looks at all pixels."""
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
    """Blobs as defects, and scores that separate them more or less; rounded to ``levels`` steps to get ties."""
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=(side, side)), side / 16) for _ in range(images)])
    masks = fields > np.quantile(fields, 0.93)
    masks &= rng.random(masks.shape) < 0.97  # ragged edges, single pixels and diagonal neighbours
    masks[0, 0, 0] = True
    maps = rng.normal(size=masks.shape) + masks * rng.uniform(0, 3)
    if levels is not None:
        maps = np.round(maps * levels / 6)
    return maps.astype(np.float32), masks


def check(name: str, other: Callable[[np.ndarray, np.ndarray], float], cases: list[Case], tolerance: float) -> Gate:
    """The largest difference over all cases."""
    largest = max(abs(ours(*case) - other(*case)) for case in cases)
    title = f"largest difference from {name}, {len(cases)} cases"
    return Gate(title, f"{largest:.1e}", f"≤ {tolerance:.0e}", largest <= tolerance)


def anomalib_aupro() -> Callable[[np.ndarray, np.ndarray], float] | None:
    """anomalib's metric as a function; ``None`` when it is not installed, with a printed reason."""
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
    """Time and memory of one large category, as text."""
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
    process = usage(os.getpid())
    peak = process.peak / 1e9 if process else float("nan")
    return (
        f"{images} images of {pixels.side} × {pixels.side}: AUPRO {value:.4f}, collected in "
        f"{collected - start:.1f} s, computed in {done - collected:.1f} s, peak memory {peak:.2f} GB."
    )


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("aupro_check", __doc__)
    parser.add_argument("--cases", type=int, default=40, help="random cases of each kind (default: 40)")
    parser.add_argument("--images", type=int, default=578, help="of the large category (default: 578)")
    add_output(parser)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    cases = [random_case(rng, images=3, side=24, levels=levels) for levels in [None, 4, 30] * options.cases]
    gates = [check("the reference", reference, cases, TOLERANCE)]
    theirs = anomalib_aupro()
    if theirs is not None:
        gates.append(check("anomalib's metric", theirs, cases, ANOMALIB_TOLERANCE))
    large = measure_large(options.images)
    return finish(options.output, {"large": large}, large, gates)
