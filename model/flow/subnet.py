"""A task's part of a MoLE block's subnet: low-rank changes (``moleflow.model.flow.blocks``), or whole layers."""

from torch import nn

from moleflow.model.config import FlowConfig
from moleflow.model.flow.blocks import MoLEBase, MoLEDelta, SubnetWeights, scale_inputs

__all__ = ["DenseSubnet", "TaskSubnet", "task_subnet"]


class DenseSubnet(nn.Module):
    """The subnet without LoRA: four plain linear layers per task, of the shapes that the base would have.

    The paper does not say what "a plain linear layer instead" means for a sequence of tasks. Here the layers belong to
    the task and are initialised for it, so tasks share only scale context, permutation and mixer, which are frozen as
    usual: forgetting stays zero, and the comparison shows what the low-rank changes save and cost.
    """

    def __init__(self, dim: int, config: FlowConfig) -> None:
        super().__init__()
        half = dim // 2
        self.shift_in, self.shift_out = nn.Linear(half, dim), nn.Linear(dim, half)
        self.scale_in, self.scale_out = nn.Linear(scale_inputs(dim, config), dim), nn.Linear(dim, half)

    def merge(self, base: MoLEBase) -> SubnetWeights:
        """Copies of its layers, so that later training does not change them."""
        layers = (self.shift_in, self.shift_out, self.scale_in, self.scale_out)
        return SubnetWeights(*((layer.weight.clone(), layer.bias.clone()) for layer in layers))


TaskSubnet = MoLEDelta | DenseSubnet


def task_subnet(dim: int, config: FlowConfig) -> TaskSubnet:
    """A new task's part of one MoLE block."""
    return MoLEDelta(dim, config) if config.subnet == "lora" else DenseSubnet(dim, config)
