"""Graphs are written in each form, converted once for all weights, and compared with PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moleflow.model.errors import BackboneError, ConfigurationError
from moleflow.model.exported.manifest import GraphFormat
from moleflow.model.exporter.forms import FORMS, Writer
from moleflow.model.exporter.graphs import Network

X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))


class _Two(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.rand(4, 2, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x @ self.weight
        return y, y.sum(-1)


def network(seed: int) -> Network:
    return Network(_Two(seed), (X,), ("x",), ("y", "sum"))


@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_networks_that_differ_in_weights_are_translated_once(
    name: GraphFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in {"openvino": ["openvino"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}[name]:
        pytest.importorskip(package)
    form = FORMS[name]()
    writer, translate = Writer(form), form.translated
    calls: list[Network] = []
    monkeypatch.setattr(form, "translated", lambda each: calls.append(each) or translate(each))
    for seed in range(3):
        writer.write(tmp_path / str(seed), network(seed))
    assert len(calls) == 1
    for seed in range(3):
        found = form.run(tmp_path / str(seed), [X[:2].numpy()])
        for one, other in zip(found, network(seed).module(X[:2]), strict=True):
            assert np.allclose(one, other.numpy(), atol=1e-6)


class _Wrong:
    """A form whose results are not PyTorch's."""

    def translated(self, each: Network) -> Any:
        return None

    def save(self, translated: Any, each: Network, path: Path) -> None:
        path.touch()

    def run(self, path: Path, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        y = inputs[0] @ network(0).module.state_dict()["weight"].numpy()
        return [y, y.sum(-1) if len(y) == 1 else 0 * y[:, 0]]


def test_a_graph_with_other_results_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"'graph' cannot be exported: its results differ from PyTorch's by 1 of"):
        Writer(_Wrong()).write(tmp_path / "graph", network(0))


def test_missing_packages_are_named_with_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"'onnx'; run pip install 'moleflow\[onnx\]'"):
        FORMS["onnx"]()
