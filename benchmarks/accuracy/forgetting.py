"""Does an older product's output change when later products are learned? Compares two checkpoints bit by bit.

    python -m benchmarks forgetting BEFORE.safetensors AFTER.safetensors --data DATA --category bottle [--plugin MODULE]

Both checkpoints predict every test image of the category with the product named, so the router does not matter.
Scores and patch maps must be equal, not just close; so must the digests of the tensors. Also printed: how many images
the later checkpoint routes to another product. Exit status 1 when anything differs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.shared.command import make_parser, prepare
from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.training.data.datasets import load_category, read_image

BATCH_SIZE = 8


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("forgetting", __doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--plugin")
    options = parser.parse_args(arguments)
    prepare(options.plugin)
    digests = [Checkpoint.open(path).header.task(options.category).sha256 for path in (options.before, options.after)]
    before, after = Detector.load(options.before), Detector.load(options.after)
    samples = load_category(options.data, options.category).test
    differing = rerouted = 0
    for start in range(0, len(samples), BATCH_SIZE):
        images = [
            read_image(sample.path, before.preprocessing.image_size) for sample in samples[start : start + BATCH_SIZE]
        ]
        named = [options.category] * len(images)
        found = [each.predict(images, named, refuse_unknown=False) for each in (before, after)]
        for old, new in zip(*found, strict=True):
            differing += old.score != new.score or not np.array_equal(old.grid_map, new.grid_map)
            rerouted += new.candidates[0].name != options.category
    same = digests[0] == digests[1]
    print(
        f"{options.category}: tensors {'identical' if same else 'DIFFER'} ({digests[0][:12]}… and {digests[1][:12]}…)"
    )
    print(f"{options.category}: {differing} of {len(samples)} test images differ in score or patch map")
    print(f"{options.category}: {rerouted} of {len(samples)} are routed to another product by the later checkpoint")
    return int(differing > 0 or not same)
