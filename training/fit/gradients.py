"""The gradients of one optimizer step; on a CPU a few images at a time, divided among threads.

Every term of the loss is a mean over images, so loss and gradients of the batch are weighted sums of those of its
parts. Threads with their own images synchronise once per step instead of after every operation
(``moleflow.model.runtime.parallel``). A GPU takes the whole batch at once, with kernels of its own where they run.
"""

import torch

from moleflow.model.flow.expert import Base, Expert
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.model.runtime.device import autocast, matmul_dtype
from moleflow.model.runtime.kernels import can_run_kernels, on_device
from moleflow.model.runtime.parallel import parallel_map
from moleflow.training.config import TrainingConfig
from moleflow.training.fit.backward.network import FusedFlow
from moleflow.training.fit.loss import tail_aware_loss

__all__ = ["add_gradients", "runs_kernels"]

AT_ONCE_BYTES = 10 * 2**20
"""Most bytes of float32 embeddings processed at once on a CPU: four images of MAIN. With fewer, matrix products and
gradient sums take longer; with more, elementwise passes do, since values no longer fit into the cache."""


def add_gradients(
    base: Base,
    expert: Expert,
    embeddings: torch.Tensor,
    training: TrainingConfig,
    precision: str,
    patches: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the gradients of the batch's loss to the parameters of ``base`` and ``expert`` that take any.

    ``embeddings`` are ``(B, H, W, D)``; matrix products run in the resolved ``precision``. The loss is that of
    ``patches`` (``tail_aware_loss``). Returns loss and mean NLL of all patches as scalars, without synchronising. The
    order of summation depends on the number of threads only, so results are reproducible to the bit for one number of
    threads, and differ by rounding between numbers.
    """
    if runs_kernels(embeddings):
        return _add_accelerated(base, expert, embeddings, training, precision, patches)
    flow = FusedFlow(base, expert, matmul_dtype(precision))

    def take(share: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Loss, NLL and gradients of some images, weighted by their fraction of the batch."""
        totals = torch.zeros(2, device=share.device)
        gradients: list[torch.Tensor] = []
        for images in share.split(at_once(share)):
            weight = len(images) / len(embeddings)
            with torch.enable_grad():  # the mode is per thread
                with autocast(share.device, precision):
                    z, log_det = flow(images)
                nll = negative_log_likelihood(z, log_det)
                loss = tail_aware_loss(nll, log_det, training, patches) * weight
                gradients = _sums(gradients, flow.gradients(loss))
            totals += torch.stack((loss.detach(), nll.detach().mean() * weight))
        return totals, gradients

    if embeddings.device.type == "cpu":
        found = parallel_map(take, embeddings.tensor_split(min(torch.get_num_threads(), len(embeddings))))
    else:
        found = [take(embeddings)]
    totals, gradients = found[0]
    for more, others in found[1:]:
        totals, gradients = totals + more, _sums(gradients, others)
    flow.finish(gradients)
    return totals[0], totals[1]


def runs_kernels(embeddings: torch.Tensor) -> bool:
    """Whether ``add_gradients`` of ``embeddings`` is by Triton kernels, which tensors without values do not have."""
    return type(embeddings) is torch.Tensor and can_run_kernels(embeddings.device)


def _add_accelerated(
    base: Base,
    expert: Expert,
    embeddings: torch.Tensor,
    training: TrainingConfig,
    precision: str,
    patches: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``add_gradients`` by Triton kernels."""
    from moleflow.training.fit.backward.accelerated import AcceleratedFlow, accelerated_likelihood

    # Kernels are launched on the current device, which need not be the one of the data.
    with on_device(embeddings.device), torch.enable_grad():
        flow = AcceleratedFlow(base, expert, matmul_dtype(precision))
        with autocast(embeddings.device, precision):
            z, log_det = flow(embeddings)
        nll = accelerated_likelihood(z, log_det)
        loss = tail_aware_loss(nll, log_det, training, patches)
        flow.finish(flow.gradients(loss))
    return loss.detach(), nll.detach().mean()


def at_once(embeddings: torch.Tensor) -> int:
    """How many images of ``(B, H, W, D)`` to process at once: all, but on a CPU see ``AT_ONCE_BYTES``."""
    if embeddings.device.type != "cpu":
        return len(embeddings)
    return max(1, AT_ONCE_BYTES // (4 * embeddings[0].numel()))


def _sums(sums: list[torch.Tensor], found: list[torch.Tensor]) -> list[torch.Tensor]:
    """Add ``found`` to ``sums`` in place; ``sums`` is empty at first."""
    if not sums:
        return found
    for total, gradient in zip(sums, found, strict=True):
        total += gradient
    return sums
