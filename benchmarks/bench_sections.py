"""The sections of ``benchmarks/RESULTS.md``: which command measures what. Another section is another entry."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SECTIONS", "Section"]


@dataclass(frozen=True)
class Section:
    """One table of the results. In ``command``, ``{python}`` is our interpreter and ``{peers}`` the neighbours';
    ``{images}`` and ``{checkpoint}`` are made for all; ``--output FILE.json`` is added, and FILE.md is the table."""

    name: str
    title: str
    question: str
    command: str

    def words(self, values: Mapping[str, str]) -> list[str]:
        """The command with its places filled in."""
        return [word.format_map(values) for word in self.command.split()]


NEIGHBOURS = " ".join(
    f"--peer {name}"
    for method in ("stfpm", "reverse-distillation", "fastflow", "cflow", "efficientad-s")
    for name in (method, f"{method}-openvino")
) + " --peer patchcore"  # fmt: skip

SECTIONS = (
    Section(
        "floor", "Prediction beside its floor",
        "How near is a prediction to the bare forward pass of the backbone and the bare products of the flow?",
        "{python} benchmarks/floor.py --checkpoint {checkpoint} --rounds 5",
    ),
    Section(
        "peers", "Prediction beside the neighbours",
        "How fast is a prediction beside anomalib's methods, in PyTorch and as OpenVINO? (PaDiM, whose export takes "
        "more memory than most machines have, and PatchCore's export, which fails, are left out.)",
        f"{{python}} benchmarks/peers/speed.py --peers {{peers}} --rounds 3 --calls 1 {NEIGHBOURS}",
    ),
    Section(
        "training", "Training beside the plain way",
        "How much faster does training learn a product than the method as it is written, and does it come to the same?",
        "{python} benchmarks/training_speed.py --rounds 3 --images 8 --epochs 2",
    ),
    Section(
        "request", "Where the time of a request goes", "Which step of a request takes how long?",
        "{python} benchmarks/request_time.py --checkpoint {checkpoint} --images {images} --rounds 5 --seconds 4",
    ),
    Section(
        "service", "The service under load",
        "How many images a second does the service answer, beside its own parts in one process?",
        "{python} benchmarks/service_load.py --checkpoint {checkpoint} --images {images} --rounds 3 --seconds 4 "
        "--requests 0",
    ),
    Section(
        "threads", "How threads wait", "What does it cost to let idle threads sleep, alone and beside a busy process?",
        "{python} benchmarks/threads.py --checkpoint {checkpoint} --rounds 3",
    ),
    Section(
        "scale", "Many products in one checkpoint", "What do 1, 10 and 100 products cost to load, predict and add to?",
        "{python} benchmarks/scale.py --products 1 --products 10 --products 100 --rounds 3 --predictions 9 --adds 1",
    ),
    Section(
        "aupro", "AUPRO beside a reference", "Is the metric what its definition says, and how long does it take?",
        "{python} benchmarks/aupro_check.py",
    ),
    Section(
        "aupro-peers", "AUPRO beside anomalib's", "Does anomalib's own metric say the same?",
        "{peers} benchmarks/aupro_check.py --cases 10 --images 100",
    ),
)  # fmt: skip
