"""The two forms of a graph on disk: OpenVINO's, and ONNX.

Tracing and converting an expert takes seconds. Experts of the same shapes are therefore one graph whose weights are
inputs, converted once; the weights of each product then take the inputs' places.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from moleflow.model.errors import BackboneError, ConfigurationError, describe
from moleflow.model.exported.manifest import GraphFormat
from moleflow.model.exporter.graphs import EXAMPLES, Network
from moleflow.model.runtime.conversion import LARGEST_BATCH, converted, quiet
from moleflow.model.runtime.openvino_import import import_openvino

__all__ = ["FORMS", "Form", "Writer"]

_SIZES = (1, EXAMPLES)
"""Batches that are compared."""


class Form(Protocol):
    """One form. Making one raises ``ConfigurationError`` if packages are missing."""

    def translated(self, network: Network) -> Any:
        """The network in this form, its weights as the last inputs."""

    def save(self, translated: Any, network: Network, path: Path) -> None:
        """Write it with the network's weights to ``path`` with the form's suffixes added."""

    def run(self, path: Path, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What a program that reads the file computes."""


class Writer:
    """Writes networks in one form, and compares what was written with PyTorch."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._translated: dict[tuple, Any] = {}

    def write(self, path: Path, network: Network) -> None:
        """Write ``network`` to ``path`` with the form's suffixes added.

        Raises:
            BackboneError: it cannot be exported, or the result differs.
        """
        state = network.module.state_dict()
        key = network.outputs, *((name, value.dtype, tuple(value.shape)) for name, value in state.items())
        try:
            if key not in self._translated:
                self._translated = {key: self._form.translated(network)}  # experts come one after another
            self._form.save(self._translated[key], network, path)
            differences = self._differences(path, network)
        except Exception as error:  # tracing runs the network's own code
            raise _refused(path, describe(error)) from error
        if not max(differences) <= network.tolerance:
            raise _refused(path, f"its results differ from PyTorch's by {max(differences):.2g} of their range")

    def _differences(self, path: Path, network: Network) -> list[float]:
        """The largest difference of each output, relative to its largest value."""
        found = []
        for size in _SIZES:
            inputs = [each[:size] for each in network.examples]
            computed = self._form.run(path, [each.numpy() for each in inputs])
            for one, other in zip(computed, network.module(*inputs), strict=True):
                found.append(float(np.abs(one - other.numpy()).max() / max(1e-6, float(other.abs().max()))))
        return found


def _refused(path: Path, problem: str) -> BackboneError:
    return BackboneError(
        f"the graph {path.name!r} cannot be exported: {problem}; try the other --format, or serve the checkpoint."
    )


class _Functional(nn.Module):
    """A module whose weights are its last argument."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that the weights are not part of this module's own state.
        self._module, self._names = (module,), tuple(module.state_dict())

    def forward(self, inputs: tuple[torch.Tensor, ...], weights: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        state = dict(zip(self._names, weights, strict=True))
        return torch.func.functional_call(self._module[0], state, inputs)


def _to_trace(network: Network) -> tuple[nn.Module, tuple[Any, Any], list[Any]]:
    """The network with its weights as the last inputs, examples of its inputs, and their dynamic axes."""
    weights = list(network.module.state_dict().values())
    examples = tuple(each[:2] for each in network.examples)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    free = [tuple({0: batch} for _ in examples), [None] * len(weights)]
    return _Functional(network.module.eval()), (examples, weights), free


class _OpenVINO:
    """OpenVINO IR, two files a graph."""

    def __init__(self) -> None:
        _check_installed("openvino", extra="openvino")

    def translated(self, network: Network) -> Any:
        """As ``Form``."""
        with quiet():
            return converted(*_to_trace(network))

    def save(self, translated: Any, network: Network, path: Path) -> None:
        """As ``Form``."""
        openvino = import_openvino()

        graph = translated.clone()
        weights = graph.get_parameters()[len(network.examples) :]
        for parameter, value in zip(weights, network.module.state_dict().values(), strict=True):
            constant = openvino.opset13.constant(value.contiguous().numpy())
            parameter.output(0).replace(constant.output(0))
            graph.remove_parameter(parameter)
        graph.validate_nodes_and_infer_types()
        for ports, names in ((graph.inputs, network.inputs), (graph.outputs, network.outputs)):
            for port, name in zip(ports, names, strict=True):
                port.get_tensor().set_names({name})
        openvino.save_model(graph, f"{path}.xml", compress_to_fp16=False)

    def run(self, path: Path, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As ``Form``."""
        openvino = import_openvino()

        compiled = openvino.Core().compile_model(f"{path}.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled(list(inputs))
        return [found[output] for output in compiled.outputs]


class _ONNX:
    """ONNX, one file a graph."""

    def __init__(self) -> None:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _check_installed(package, extra="onnx")

    def translated(self, network: Network) -> Any:
        """As ``Form``."""
        names = (*network.inputs, *network.module.state_dict())
        with quiet():
            module, examples, free = _to_trace(network)
            traced = torch.export.export(module, examples, dynamic_shapes=tuple(free), strict=False)
            program = torch.onnx.export(
                traced, dynamo=True, input_names=names, output_names=network.outputs, verbose=False
            )
        assert program is not None
        return program.model_proto

    def save(self, translated: Any, network: Network, path: Path) -> None:
        """As ``Form``."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(translated)
        del model.graph.input[len(network.examples) :]
        for name, value in network.module.state_dict().items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(value.contiguous().numpy(), name))
        onnx.save_model(model, f"{path}.onnx")

    def run(self, path: Path, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As ``Form``."""
        import onnxruntime

        session = onnxruntime.InferenceSession(f"{path}.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, dict(zip((each.name for each in session.get_inputs()), inputs, strict=True)))


def _check_installed(package: str, *, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigurationError(
            f"this form of graphs needs the package {package!r}; run pip install 'moleflow[{extra}]'."
        )


FORMS: dict[GraphFormat, type[Form]] = {"openvino": _OpenVINO, "onnx": _ONNX}
