"""Fit one task: its expert, and with the first task the shared base."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moleflow.model.config import ModelConfig
from moleflow.model.errors import CheckpointError, one_line
from moleflow.model.files.atomic import atomic_write
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.store.sections import STORED_TYPES
from moleflow.training.config import TrainingConfig
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.fit.gradients import add_gradients
from moleflow.training.fit.graph import StepGraph
from moleflow.training.fit.resident import Batches

__all__ = ["EpochResult", "TaskTrainer", "fit_length", "task_seed"]


def fit_length(training: TrainingConfig, images: int) -> float:
    """Epochs of a fit to so many images: as configured, or fewer for ``max_steps``; fractional."""
    if training.max_steps is None:
        return training.epochs
    return min(training.epochs, training.max_steps / math.ceil(images / training.batch_size))


def task_seed(seed: int, name: str, purpose: str = "") -> int:
    """A seed of the task's own, from its name and not its position, so it does not depend on the order of tasks."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}|{purpose}".encode()).digest()[:7])


@dataclass(frozen=True, slots=True)
class EpochResult:
    """The result of an epoch: its number from 1, mean loss and mean NLL over its steps, and the last learning rate.

    The last epoch has fewer steps where their number is limited (``TrainingConfig.max_steps``)."""

    epoch: int
    loss: float
    nll: float
    learning_rate: float


class TaskTrainer:
    """Trains the expert of one task, and ``base`` if it learns with this task.

    ``first`` is true for a task that starts a new base. The base learns with it, or with every task if the
    configuration says so (``FlowConfig.sharing``). Only patches that are ``inspected`` ``(H, W)`` are fitted to; all by
    default.

    The state after each epoch can be saved and restored; continuing from it gives the same weights as an uninterrupted
    training (same machine, same number of threads).
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        training: TrainingConfig,
        base: Base,
        *,
        first: bool,
        device: torch.device,
        precision: str,
        inspected: torch.Tensor | None = None,
    ) -> None:
        self.name, self.training, self.first = name, training, first
        self.stored_type = STORED_TYPES[config.expert_dtype]
        self.device, self.precision = device, precision
        self.patches = None if inspected is None else inspected.flatten().nonzero()[:, 0].to(device)
        self.trains_base = first or config.flow.sharing == "sequential"
        self.base = base.to(device).requires_grad_(self.trains_base)
        self.expert = Expert(config, first=first, seed=task_seed(training.seed, name, "expert")).to(device)
        modules = (base, self.expert) if self.trains_base else (self.expert,)
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.on_gpu = device.type == "cuda" and torch.cuda.is_available()
        self._graph: StepGraph | None = None
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self._configure_optimizer()
        self.epoch = 0

    def step(self, embeddings: torch.Tensor, learning_rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step on ``(B, H, W, D)``; returns loss and mean NLL as scalars, without synchronising.

        On a GPU by replay of a recording (``moleflow.training.fit.graph``), which the first step of each batch size
        makes; it stays in the GPU's memory until ``epochs`` ends or the trainer does.
        """
        self._set_learning_rate(learning_rate)
        if not self.on_gpu or type(embeddings) is not torch.Tensor:  # a tensor without values has nothing to record
            return self._update(embeddings)
        if self._graph is None:
            self._graph = StepGraph(self.parameters, self.optimizer, self.device)
        return self._graph(self._update, embeddings)

    def _update(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step at the rate that is set."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.base, self.expert
        loss, nll = add_gradients(*parts, embeddings, self.training, self.precision, self.patches)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.max_gradient_norm)
        self.optimizer.step()
        return loss, nll

    def _forget_recordings(self) -> None:
        """Free the memory of recorded steps, gradients included; they are made again on demand."""
        if self._graph is not None:
            self._graph = None
            self.optimizer.zero_grad(set_to_none=True)

    def _configure_optimizer(self) -> None:
        """On a GPU, have it keep its state and learning rate there, where a recorded step finds them."""
        for group in self.optimizer.param_groups:
            rate = float(group["lr"])
            if self.on_gpu:
                group |= {"lr": torch.tensor(rate, device=self.device), "capturable": True, "fused": True}
            else:
                group |= {"lr": rate, "capturable": False, "fused": None}
        if self.on_gpu:
            # A step that is not recorded may be capturable all the same, which PyTorch warns of.
            setattr(self.optimizer, "_warned_capturable_if_run_uncaptured", True)  # noqa: B010

    def _set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if self.on_gpu:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def epochs(
        self, store: Embeddings, on_step: Callable[[int, torch.Tensor], None] = lambda images, loss: None
    ) -> Iterator[EpochResult]:
        """Train the remaining epochs, yielding after each; ``on_step`` gets the number of images and the loss."""
        steps = math.ceil(len(store) / self.training.batch_size)
        length = self.length(len(store))
        source = Batches(store, self.device)
        if self.epoch == 0:
            rows = source.order(torch.arange(len(store))).split(self.training.batch_size)
            batches = (source.batch(indices) for indices in rows)
            if self.patches is not None:
                batches = (batch.flatten(1, 2).index_select(1, self.patches) for batch in batches)
            self.expert.adapter.fit(batches)
        try:
            while self.epoch < length:
                generator = torch.Generator().manual_seed(
                    task_seed(self.training.seed, self.name, f"epoch {self.epoch}")
                )
                order = source.order(torch.randperm(len(store), generator=generator))
                totals = torch.zeros(2, device=self.device)
                rate = 0.0
                batches = order.split(self.training.batch_size)[: round((length - self.epoch) * steps)]
                for number, indices in enumerate(batches):
                    rate = self.learning_rate((self.epoch * steps + number) / steps, length)
                    loss, nll = self.step(source.batch(indices), rate)
                    totals += torch.stack((loss, nll))
                    on_step(len(indices), loss)
                self.epoch += 1
                loss_mean, nll_mean = (totals / len(batches)).tolist()
                yield EpochResult(self.epoch, loss_mean, nll_mean, rate)
        finally:
            self._forget_recordings()

    def finish(self) -> None:
        """Round the expert to its stored type, so that it is calibrated as it will be loaded."""
        self.expert.round_to(self.stored_type)

    def length(self, images: int) -> float:
        """Epochs of a fit to so many images; fractional."""
        return fit_length(self.training, images)

    def learning_rate(self, epoch: float, length: float) -> float:
        """Linear warm-up, then cosine decay to the final rate; ``epoch`` is fractional, from 0 to ``length``."""
        training = self.training
        wanted = training.first_warmup_epochs if self.first else training.warmup_epochs
        warmup = min(wanted, length / 4)
        if epoch < warmup:
            # Not zero in the first step.
            return training.learning_rate * max(epoch / warmup, 0.01)
        progress = (epoch - warmup) / max(length - warmup, 1e-9)
        share = training.final_learning_rate
        return training.learning_rate * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the state after an epoch atomically; ``fingerprint`` identifies the fit.

        Raises:
            CheckpointError: the file cannot be written.
        """
        state: dict[str, Any] = {
            "fingerprint": fingerprint,
            "epoch": self.epoch,
            "expert": self.expert.state_dict(),
            "base": self.base.state_dict() if self.trains_base else None,
            "optimizer": self.optimizer.state_dict(),
        }
        try:
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                torch.save(state, file)  # given a path, its error would not say why
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the state of training {str(path)!r} cannot be written ({one_line(error)}); make room and give the "
                "same command again."
            ) from error

    def restore(self, path: Path, fingerprint: str) -> bool:
        """Restore the state in ``path`` if it has the same ``fingerprint``; returns whether it did.

        Raises:
            ValueError: the file is damaged; nothing has been restored.
        """
        if not path.is_file():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["fingerprint"] != fingerprint:
                return False
        except Exception as error:  # the restricted unpickler raises anything on damaged files
            raise ValueError(f"{str(path)!r} is no whole state of training ({one_line(error)})") from error
        self.expert.load_state_dict(state["expert"])
        if self.trains_base:
            self.base.load_state_dict(state["base"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._configure_optimizer()
        self._forget_recordings()  # they change the state that was replaced
        self.epoch = state["epoch"]
        return True
