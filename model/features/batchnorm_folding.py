"""Batch-normalisation folding and operator fusion for inference.

In eval mode, batch normalisation is a fixed scale and shift per channel that folds into the preceding convolution's
kernel and bias: ``γ·(w∗x + b − μ)/√(σ² + ε) + β``; exact but for rounding. A following ReLU, and the addition that ends
a residual block, are fused into the convolution (``moleflow.model.runtime.fused``).

Works on the graph traced by ``torch.fx``. A network that cannot be traced, because its code depends on tensor values or
sizes, is left unchanged.
"""

import copy
import operator
import threading
from collections.abc import Callable
from typing import Any

import timm.models
import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from moleflow.model.runtime.fused import Activation, FusedConv

__all__ = ["fold"]

_ADDITIONS = (operator.add, operator.iadd, torch.add)

_ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Identity: "none"}


def fold(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """An equivalent network whose plain convolutions compute in ``dtype``; ``net`` is not modified.

    All other layers are shared with ``net`` and keep their type: run it under the matching
    ``moleflow.model.runtime.device.autocast``.
    """
    if isinstance(net, timm.models.FeatureHookNet):
        return net  # hooks are not part of a graph
    try:
        graph = _Tracer().trace(net)
    except Exception:  # tracing runs arbitrary model code, which can raise anything
        return net
    with torch.no_grad():
        folded = fx.GraphModule(net, graph)
        _Folding(folded, dtype).run()
    return folded.eval()


class _Tracer(fx.Tracer):
    """Treats convolutions and batch normalisations as leaves, including subclasses of PyTorch's.

    Tracing replaces the calls and attributes of all modules, also for threads that predict meanwhile, which it passes
    through unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(module, name)


class _Folding:
    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        self.module, self.dtype = module, dtype
        self.graph = module.graph
        self.layers: dict[str, nn.Module] = dict(module.named_modules())

    def run(self) -> None:
        """Rewrite the graph: normalisations first, then activations, then residual additions."""
        for node in list(self.graph.nodes):
            if type(self._layer(node)) is nn.Identity and isinstance(node.args[0], fx.Node):
                self._replace(node, node.args[0])
        for node in list(self.graph.nodes):
            self._convolution(node)
        for node in list(self.graph.nodes):
            self._activation(node)
        for node in list(self.graph.nodes):
            self._residual(node)
        self.graph.lint()
        self.module.delete_all_unused_submodules()
        self.module.recompile()

    def _convolution(self, node: fx.Node) -> None:
        conv = self._layer(node)
        if not isinstance(conv, nn.Conv2d):
            return
        after = self._sole_user(node)
        norm = None if after is None else self._layer(after)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            conv = _normalised(conv, norm)
        else:
            after, norm = None, None
        activation: nn.Module | None = getattr(norm, "act", None)  # timm's norm layers include the activation
        joined: Activation = "none"
        if type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
            if activation is not None and type(activation) in _ACTIVATIONS:
                joined, activation = _ACTIVATIONS[type(activation)], None
            conv = FusedConv(
                conv.weight,
                conv.bias,
                self.dtype,
                stride=conv.stride,
                padding=conv.padding,
                dilation=conv.dilation,
                groups=conv.groups,
                activation=joined,
            )
        self._set(node, f"{node.name}_folded", conv)
        if after is not None:
            self._replace(after, node)
            if activation is not None:
                with self.graph.inserting_after(node):
                    acted = self.graph.call_module(self._add(f"{node.name}_activation", activation), (node,))
                node.replace_all_uses_with(acted, delete_user_cb=lambda user: user is not acted)

    def _activation(self, node: fx.Node) -> None:
        before = node.args[0] if node.args else None
        if isinstance(before, fx.Node) and self._is_relu(node):
            conv = self._free_convolution(before)
            if conv is not None:
                conv.activation = "relu"
                self._replace(node, before)

    def _residual(self, node: fx.Node) -> None:
        if not (node.op == "call_function" and node.target in _ADDITIONS and len(node.args) == 2 and not node.kwargs):
            return
        first, second = node.args
        if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
            return
        order = {each: number for number, each in enumerate(self.graph.nodes)}
        # The summand must exist when the convolution runs, so the later convolution adds the earlier result.
        earlier, later = sorted((first, second), key=order.__getitem__)
        conv = self._free_convolution(later)
        if conv is None or earlier is later:
            return
        later.args = (later.args[0], earlier)
        self._replace(node, later)
        after = self._sole_user(later)
        if after is not None and self._is_relu(after):
            conv.activation = "relu"
            self._replace(after, later)

    def _free_convolution(self, node: fx.Node) -> FusedConv | None:
        """The convolution of ``node``, if the next operation can be fused: one user, and nothing fused yet."""
        conv = self._layer(node)
        if not isinstance(conv, FusedConv) or conv.activation != "none" or len(node.args) > 1:
            return None
        return conv if self._sole_user(node) is not None else None

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_function":
            return node.target in (torch.relu, nn.functional.relu)
        return type(self._layer(node)) is nn.ReLU

    def _layer(self, node: fx.Node) -> nn.Module | None:
        return self.layers.get(str(node.target)) if node.op == "call_module" else None

    def _sole_user(self, node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def _add(self, name: str, layer: nn.Module) -> str:
        self.module.add_submodule(name, layer)
        self.layers[name] = layer
        return name

    def _set(self, node: fx.Node, name: str, layer: nn.Module) -> None:
        node.target = self._add(name, layer)

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)


def _normalised(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """``conv`` followed by ``norm`` as one convolution of the same class (subclasses may pad differently)."""
    assert norm.running_mean is not None and norm.running_var is not None  # checked by the caller
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    other = copy.copy(conv)
    other._parameters = {"weight": nn.Parameter(weight, False), "bias": nn.Parameter(bias, False)}
    return other
