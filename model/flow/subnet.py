"""What a task brings to the subnet of a MoLE block: low-rank changes (``moleflow.model.flow.blocks``), or whole layers
of its own."""

from torch import nn

from moleflow.model.config import FlowConfig
from moleflow.model.flow.blocks import MoLEBase, MoLEDelta, SubnetWeights, scale_inputs

__all__ = ["DenseSubnet", "TaskSubnet", "task_subnet"]


class DenseSubnet(nn.Module):
    """The subnet without LoRA: four plain linear layers of the task's own, shaped as the base's would be.

    What "a plain linear layer instead" means where tasks come one after another, the ablation study leaves open. Here
    the layers belong to the task and start anew with it, so nothing is shared between tasks but scale context,
    permutation and mixer, which are frozen as ever: forgetting stays zero, and the comparison shows what the
    low-rank changes save and cost.
    """

    def __init__(self, dim: int, config: FlowConfig) -> None:
        super().__init__()
        half = dim // 2
        self.shift_in, self.shift_out = nn.Linear(half, dim), nn.Linear(dim, half)
        self.scale_in, self.scale_out = nn.Linear(scale_inputs(dim, config), dim), nn.Linear(dim, half)

    def merge(self, base: MoLEBase) -> SubnetWeights:
        """Its own layers; copies, so that later training does not change them."""
        layers = (self.shift_in, self.shift_out, self.scale_in, self.scale_out)
        return SubnetWeights(*((layer.weight.clone(), layer.bias.clone()) for layer in layers))


TaskSubnet = MoLEDelta | DenseSubnet


def task_subnet(dim: int, config: FlowConfig) -> TaskSubnet:
    """A new task's part of one MoLE block."""
    return MoLEDelta(dim, config) if config.subnet == "lora" else DenseSubnet(dim, config)
