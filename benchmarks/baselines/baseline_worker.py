"""The baselines' worker: anomalib's models in PyTorch and exported to OpenVINO. Started by ``speed.py``.

Every model has anomalib's defaults, except for WideResNet-50-2 as backbone and 224 × 224 pixels. Weights are random:
only shapes matter for time. EfficientAD has its own network, which needs at least 256 × 256. Pre- and post-processing
are left out in both forms: a baseline's time is that of its network, score and map, while MoLE-Flow's includes
normalisation and routing.
"""

import contextlib
import functools
import importlib.metadata
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from benchmarks.baselines.protocol import Subject, serve
from moleflow.model.runtime.threads import configure_threads

BACKBONE = "wide_resnet50_2"

SIDE = 224
"""Image size in pixels; see ``_side`` for the exception."""

MEMORY_BANK = 16385
"""Patches in PatchCore's memory bank: 10 % of those of 209 images (bottle of MVTec AD) at 28 × 28."""

PADIM_LOCATIONS = (SIDE // 4) ** 2
"""Number of PaDiM's Gaussians: it works at the first stage's stride of 4."""

_SHORT = {"f32": "fp32", "f16": "fp16"}
"""OpenVINO's names of precisions, where they differ from ours."""


class TorchSubject:
    """A model's network in fp32 and inference mode, as anomalib has it."""

    def __init__(self, module: Any, side: int) -> None:
        self.network, self.side = module.model.eval(), side
        self.facts = {"form": "PyTorch", "precision": "fp32", "pixels": side}
        if not np.isfinite(self.call(1)()).all():
            raise ValueError("the random weights give values that are not finite, so the time would mislead")

    def call(self, batch: int) -> Callable[[], np.ndarray]:
        images = torch.rand(batch, 3, self.side, self.side)

        @torch.inference_mode()
        def predict() -> np.ndarray:
            found: np.ndarray = self.network(images).anomaly_map.numpy()
            return found

        return predict


class OpenVinoSubject:
    """The model as anomalib exports it, compiled by OpenVINO for one batch size at a time with the latency hint."""

    def __init__(self, module: Any, side: int, folder: Path, threads: int) -> None:
        import openvino

        module.pre_processor = None
        path = module.eval().to_openvino(folder, input_size=(side, side))
        self.core, self.path, self.side, self.threads = openvino.Core(), path, side, threads
        self._compile(1)
        precision = self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.facts = {"form": "OpenVINO", "precision": _SHORT.get(precision, precision), "pixels": side}

    def call(self, batch: int) -> Callable[[], Any]:
        if batch != self.batch:
            self._compile(batch)
        request = self.compiled.create_infer_request()
        images = np.random.default_rng(0).random((batch, 3, self.side, self.side), dtype=np.float32)
        return lambda: request.infer([images])

    def _compile(self, batch: int) -> None:
        self.compiled: Any = None  # frees PaDiM's parameters, which take GB
        model = self.core.read_model(self.path)
        model.reshape([batch, 3, self.side, self.side])
        options = {"INFERENCE_NUM_THREADS": str(self.threads), "PERFORMANCE_HINT": "LATENCY"}
        self.compiled, self.batch = self.core.compile_model(model, "CPU", options), batch


@contextlib.contextmanager
def _without_downloads() -> Iterator[None]:
    """Let timm build every network with random weights, even where a model asks for trained ones."""
    original = timm.create_model

    @functools.wraps(original)
    def create(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs | {"pretrained": False})

    timm.create_model = create
    try:
        yield
    finally:
        timm.create_model = original


def _side(name: str) -> int:
    return 256 if name == "efficientad-s" else SIDE


def _build(name: str) -> Any:
    from anomalib.models import image

    bare: dict[str, Any] = {"post_processor": False, "evaluator": False, "visualizer": False}
    with _without_downloads():
        kind = {
            "patchcore": image.Patchcore,
            "padim": image.Padim,
            "fastflow": image.Fastflow,
            "cflow": image.Cflow,
            "reverse-distillation": image.ReverseDistillation,
            "stfpm": image.Stfpm,
            "efficientad-s": image.EfficientAd,
        }[name]
        if name != "efficientad-s":
            bare["backbone"] = BACKBONE
        module = kind(pre_processor=kind.configure_pre_processor((_side(name), _side(name))), **bare)
    if name == "patchcore":
        module.model.memory_bank = torch.randn(MEMORY_BANK, sum(module.model.feature_extractor.out_dims))
    if name == "padim":
        gaussian, features = module.model.gaussian, module.model.n_features
        gaussian.mean = torch.randn(features, PADIM_LOCATIONS)
        gaussian.inv_covariance = torch.eye(features).repeat(PADIM_LOCATIONS, 1, 1)
    return module


NAMES = ("patchcore", "padim", "fastflow", "cflow", "reverse-distillation", "stfpm", "efficientad-s")
"""The baselines by the names that ``speed.py`` uses; ``-openvino`` is appended for the export."""


def builders(folder: Path, threads: int) -> Mapping[str, Callable[[], Subject]]:
    """Every baseline in both forms; ``folder`` takes the exports."""

    def torch_subject(name: str) -> Subject:
        return TorchSubject(_build(name), _side(name))

    def openvino_subject(name: str) -> Subject:
        return OpenVinoSubject(_build(name), _side(name), folder / name, threads)

    return {name: functools.partial(torch_subject, name) for name in NAMES} | {
        f"{name}-openvino": functools.partial(openvino_subject, name) for name in NAMES
    }


def main() -> None:
    """Answer requests until stdin ends."""
    warnings.simplefilter("ignore")  # nobody here can fix what anomalib and its libraries warn about
    logging.disable(logging.WARNING)
    threads = configure_threads()
    versions = {name: importlib.metadata.version(name) for name in ("anomalib", "openvino", "timm")}
    with tempfile.TemporaryDirectory() as folder:
        serve(builders(Path(folder), threads), versions | {"torch": torch.__version__, "threads": threads})


if __name__ == "__main__":
    main()
