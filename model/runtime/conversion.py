"""PyTorch modules as OpenVINO models, and the folder that keeps them.

Exporting and converting takes seconds, so a model is kept in a folder by what it depends on, and later starts only
compile it. OpenVINO is an extra: nothing here is called without it.
"""

import hashlib
import importlib.metadata
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import moleflow
from moleflow.model.errors import describe
from moleflow.model.runtime.openvino_import import import_openvino
from moleflow.model.runtime.user_cache import user_cache

__all__ = ["LARGEST_BATCH", "cache_folder", "compile_options", "converted", "infer", "kept_model", "quiet"]

FORM = 3
"""Changes when another graph is made of the same module."""

PACKAGES = ("openvino", "timm", "torch")
"""Packages whose release may change the graph."""

LARGEST_BATCH = 1024
"""Of an exported graph; the service's own limit."""

_logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where converted models are kept."""
    return user_cache() / "openvino"


def compile_options() -> dict[str, Any]:
    """Options of ``compile_model``, for one batch at a time in float32."""
    return {
        # As many threads as PyTorch has, which a setting bounds; the two never work at the same time.
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }


def kept_model(folder: Path, facts: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """The model that ``make`` returns, from ``folder`` if it is there and whole, else made and written.

    ``facts`` are what it depends on, as JSON has it.
    """
    path = folder / f"{_key(facts)}.xml"
    found = _read(path)
    if found is None:
        with torch.inference_mode(False), torch.no_grad(), quiet():
            found = make()
        _write(found, path)
    return found


def converted(module: nn.Module, inputs: Sequence[Any], dynamic_shapes: Sequence[Any]) -> Any:
    """``module`` as a model; ``inputs`` are examples, ``dynamic_shapes`` as for ``torch.export.export``.

    Its inputs keep their order; those whose shape is fixed have it.
    """
    partial_shape = import_openvino().PartialShape
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    program = torch.export.export(module.eval(), tuple(inputs), dynamic_shapes=tuple(dynamic_shapes), strict=False)
    # Not openvino.convert_model, which reports to its makers.
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchFXPythonDecoder.from_exported_program(program)  # must outlive the conversion
    model = frontend.convert(frontend.load(decoder))
    shapes = [
        partial_shape([-1 if axis in free else size for axis, size in enumerate(tensor.shape)])
        for tensor, free in zip(_leaves(inputs), map(tuple, _leaves(dynamic_shapes)), strict=True)
    ]
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    return model


def infer(request: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The outputs of a model for ``inputs``, in float32; the request's memory is not shared with them."""
    found = request.infer({number: value.float().numpy() for number, value in enumerate(inputs)}, share_inputs=True)
    return [torch.from_numpy(found[output]) for output in request.model_outputs]


def _leaves(tree: Any) -> list[Any]:
    """What lies in sequences of sequences, in order; nothing is an empty mapping."""
    if isinstance(tree, list | tuple):
        return [leaf for each in tree for leaf in _leaves(each)]
    return [{} if tree is None else tree]


def _key(facts: Mapping[str, Any]) -> str:
    about = {
        "form": FORM,
        "moleflow": moleflow.__version__,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps({**about, **facts}, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> Any | None:
    """The model in ``path``, if it is there and whole."""
    openvino = import_openvino()

    if not path.exists():
        return None
    try:
        return openvino.Core().read_model(path)
    except Exception as error:
        _logger.warning("The converted network %s cannot be read and is made again: %s", path.name, describe(error))
        return None


def _write(model: Any, path: Path) -> None:
    openvino = import_openvino()

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as made:
            openvino.save_model(model, Path(made) / path.name, compress_to_fp16=False)
            # The weights first: what has a description is whole.
            for suffix in (".bin", ".xml"):
                (Path(made) / path.name).with_suffix(suffix).replace(path.with_suffix(suffix))
    except OSError as error:
        _logger.warning("The converted network is not kept, and made again at the next start: %s", describe(error))


@contextmanager
def quiet() -> Iterator[None]:
    """Without what PyTorch and OpenVINO tell of their own insides: warnings, and messages to the root logger."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # without any, the first message would install one for good
    root.addFilter(_nothing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(_nothing)
        root.removeHandler(handler)


def _nothing(record: logging.LogRecord) -> bool:
    return False
