"""``python -m benchmarks NAME [options]`` runs one benchmark; without a name it lists all of them.

Exit status: 0, or 1 when a gate fails, or 2 when the measurement cannot be made.
"""

import importlib
import sys
from collections.abc import Sequence

from benchmarks.shared.errors import BenchmarkError
from moleflow.model.errors import MoLEFlowError
from moleflow.model.runtime.threads import prepare_threads

__all__ = ["NAMES", "main"]

NAMES = {
    "all": ("suite.run", "every benchmark that needs no data, into RESULTS.md (make bench)"),
    "lower_bound": ("speed.lower_bound", "a prediction against the least time that the hardware needs for it"),
    "memory_cost": ("speed.memory_cost", "what a product's memory adds to a prediction"),
    "engines": ("speed.engines", "a prediction with OpenVINO against one with PyTorch alone"),
    "training_speed": ("speed.training_speed", "training against the method as it is written"),
    "request_time": ("speed.request_time", "which step of a request takes how long"),
    "service_load": ("speed.service_load", "images per second of the service, its latency and its memory"),
    "soak": ("speed.soak", "whether a service stays as it was over hours of good and bad use"),
    "threads": ("speed.threads", "what it costs to let idle threads sleep"),
    "gpu": ("gpu.run", "everything on one GPU: correctness, speed, service, training, ablations"),
    "gpu_pack": ("gpu.pack", "what to carry to a machine with a GPU, in one folder"),
    "scale": ("scale.products", "checkpoints with 1, 10, 100 and 1,000 products"),
    "scale_plan": ("scale.plan", "machines, memory, network and cost for many products, and a simulation of misses"),
    "routing_scale": ("scale.routing", "the router among 1,000 and 10,000 products drawn after real ones"),
    "cluster_training": ("scale.cluster", "products learned on a Ray cluster against one after another"),
    "baseline_speed": ("baselines.speed", "a prediction against anomalib's methods"),
    "baseline_accuracy": ("baselines.accuracy", "PatchCore and PaDiM on the same images"),
    "aupro_check": ("accuracy.aupro_check", "AUPRO against its definition and against anomalib's"),
    "precision": ("accuracy.precision", "what bf16 costs in accuracy"),
    "http_sequence": ("accuracy.http_sequence", "accuracy of a running service over a sequence of products"),
    "forgetting": ("accuracy.forgetting", "whether older products' outputs stay bit-identical"),
    "verdicts": ("accuracy.verdicts", "false alarms and found defects at the stored thresholds"),
    "unknown_products": ("accuracy.unknown_products", "products that were never learned, by the router alone"),
    "unknown_verdicts": ("accuracy.unknown_verdicts", "products that were never learned, as the service refuses them"),
    "epochs": ("accuracy.epochs", "how many epochs are worth their time"),
    "hyperparameters": ("accuracy.hyperparameters", "what each hyperparameter brings, judged without test images"),
    "scoring": ("accuracy.scoring", "how likelihoods and a memory become one map, judged without test images"),
    "story": ("story.run", "products come and go while another one is inspected, for half an hour"),
    "hostile_load": ("hostile.load", "a service under attack and a bad operator for half an hour"),
    "hostile_images": ("hostile.images", "write one hostile image to a file"),
    "decode_cost": ("hostile.decode_cost", "time and memory of decoding the worst uploads"),
    "unread_answers": ("hostile.unread_answers", "memory held for clients that never read their answers"),
    "fuzz_checkpoint": ("hostile.fuzz_checkpoint", "what the reader makes of damaged checkpoints"),
}
"""Each benchmark's module in this package, and one line about it. Its ``main`` takes the options."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns the exit status."""
    name, *options = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m benchmarks NAME [options]     (NAME --help: its options)\n")
        print("\n".join(f"  {each:<18}{text}" for each, (_, text) in NAMES.items()))
        return 0
    if name not in NAMES:
        print(f"benchmarks: there is no {name!r}; use one of {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    prepare_threads()  # before the benchmark imports PyTorch
    try:
        status: int = importlib.import_module(f"benchmarks.{NAMES[name][0]}").main(options)
    except (BenchmarkError, MoLEFlowError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
