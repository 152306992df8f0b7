"""The sections of ``benchmarks/RESULTS.md``: which command measures what. A new section is a new entry."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SECTIONS", "Section"]


@dataclass(frozen=True)
class Section:
    """One section of the results.

    In ``command``, ``{python}`` is this interpreter, ``{baselines}`` that of the baselines' environment, and
    ``{images}`` and ``{checkpoint}`` are the prepared inputs. ``--output FILE.json`` is added; FILE.md is the table.
    """

    name: str
    title: str
    question: str
    command: str

    def words(self, values: Mapping[str, str]) -> list[str]:
        """The command with its places filled in."""
        return [word.format_map(values) for word in self.command.split()]

    @property
    def benchmark(self) -> str:
        """The benchmark's name, which its own error message begins with."""
        return self.command.partition("-m benchmarks ")[2].partition(" ")[0]

    @property
    def needs_baselines(self) -> bool:
        """Whether it takes the baselines' environment."""
        return "{baselines}" in self.command


TRAINED_BASELINES = ("stfpm", "reverse-distillation", "fastflow", "cflow", "efficientad-s")
MEASURED_BASELINES = " ".join(
    f"--baseline {name}"
    for name in (*(f"{method}{form}" for method in TRAINED_BASELINES for form in ("", "-openvino")), "patchcore")
)

SECTIONS = (
    Section(
        "lower_bound",
        "Prediction and its lower bound",
        "How close is a prediction to the bare forward pass of the backbone plus the bare products of the flow?",
        "{python} -m benchmarks lower_bound --checkpoint {checkpoint} --rounds 5",
    ),
    Section(
        "baseline_speed",
        "Prediction and the baselines",
        "How fast is a prediction next to anomalib's methods, in PyTorch and OpenVINO? (Left out: PaDiM, whose export "
        "needs more memory than most machines have, and PatchCore's export, which fails.)",
        f"{{python}} -m benchmarks baseline_speed --baselines {{baselines}} --rounds 3 --calls 1 {MEASURED_BASELINES}",
    ),
    Section(
        "training_speed",
        "Training, optimised and plain",
        "How much faster does training learn a product than the method as it is written, with the same result?",
        "{python} -m benchmarks training_speed --rounds 3 --images 8 --epochs 2",
    ),
    Section(
        "request_time",
        "Where the time of a request goes",
        "Which step of a request takes how long?",
        "{python} -m benchmarks request_time --checkpoint {checkpoint} --images {images} --rounds 5 --seconds 4",
    ),
    Section(
        "service_load",
        "The service under load",
        "How many images per second does the service answer, compared with its own parts in one process?",
        "{python} -m benchmarks service_load --checkpoint {checkpoint} --images {images} --rounds 3 --seconds 4 "
        "--requests 0",
    ),
    Section(
        "threads",
        "How threads wait",
        "What does it cost to let idle threads sleep, alone and next to a busy process?",
        "{python} -m benchmarks threads --checkpoint {checkpoint} --rounds 3",
    ),
    Section(
        "scale",
        "Many products in one checkpoint",
        "What does it cost to load 1, 10 and 100 products, to predict with them, and to add one?",
        "{python} -m benchmarks scale --products 1 --products 10 --products 100 --rounds 3 --predictions 9 --adds 1",
    ),
    Section(
        "aupro_check",
        "AUPRO and its definition",
        "Does the metric follow its definition, and how long does it take?",
        "{python} -m benchmarks aupro_check",
    ),
    Section(
        "aupro_check_baselines",
        "AUPRO and anomalib's",
        "Does anomalib's own metric agree?",
        "{baselines} -m benchmarks aupro_check --cases 10 --images 100",
    ),
)
