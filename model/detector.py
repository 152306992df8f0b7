"""The detector: pictures in, typed results out. Works without HTTP, on CPU and CUDA."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch

from model.backbone import import_plugin
from model.checkpoint import Checkpoint
from model.features import FeatureExtractor, stack_images
from model.merged import MergedExpert
from model.network import with_position
from model.preprocessing import Preprocessing
from model.results import Candidate, CheckpointInfo, Prediction, TaskInfo
from model.router import Router, image_descriptor
from model.runtime import autocast, resolve_device, resolve_precision
from model.scoring import image_score

__all__ = ["MAX_EXPERTS", "Detector"]

MAX_EXPERTS = 32
"""Merged experts kept on the device, least recently used first out; one of MAIN takes 60 MB in float32."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Detector:
    """Finds defects on every product that a checkpoint has learned.

    One backbone pass a batch; the router reads the same features; each product's pictures then go through its
    expert together. The active tasks and the grid's shape are arguments throughout, so several threads may
    predict at once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        precision: str = "auto",
        max_experts: int = MAX_EXPERTS,
    ) -> None:
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self._checkpoint = checkpoint
        self._top_k = checkpoint.header.config.score_top_k
        self._features = FeatureExtractor(checkpoint.header.config, checkpoint.backbone()).to(self.device)
        separated = checkpoint.header.config.flow.sharing == "separated"
        self._shared_base = None if separated else checkpoint.base().to(self.device)
        # Reading every task once gives the router its prototypes and checks every digest before the first request.
        self._router = Router([checkpoint.task(task.index)[1] for task in self.tasks]).to(self.device)
        self._experts = _ExpertCache(self._merge, max_experts)

    @classmethod
    def load(
        cls, path: Path | str, *, device: str = "auto", precision: str = "auto", plugin: str | None = None
    ) -> Self:
        """Open a checkpoint and make it ready. ``plugin`` names a module that registers the backbone with timm.

        Raises:
            CheckpointError, BackboneError, DeviceError, ConfigurationError: see ``model.errors``.
        """
        if plugin:
            import_plugin(plugin)
        return cls(Checkpoint.open(path), device=device, precision=precision)

    @property
    def checkpoint(self) -> CheckpointInfo:
        """Name and digest of the file that answers."""
        return self._checkpoint.info

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The learned products, in order of learning."""
        return self._checkpoint.header.tasks

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures are resized and normalised."""
        return self._checkpoint.header.preprocessing

    def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> list[Prediction]:
        """Score RGB pictures, each ``(height, width, 3)`` uint8 of any size; batches of mixed products are fine.

        ``tasks[i]`` names the expert for picture ``i``; ``None`` lets the router choose.

        Raises:
            UnknownTaskError: a name that was not learned.
        """
        wanted = list(tasks) if tasks is not None else [None] * len(images)
        if len(wanted) != len(images):
            raise ValueError(f"tasks must name one entry a picture; got {len(wanted)} for {len(images)} pictures")
        forced = [None if name is None else self._checkpoint.header.task(name).index for name in wanted]
        if not images:
            return []
        with torch.inference_mode():
            batch = stack_images(list(images), self.preprocessing.resize, self.device)
            embeddings, distances = self.embed_and_route(batch)
            # The one read that waits for the device: which experts this batch needs.
            table = distances.cpu().numpy()
            chosen = [
                index if index is not None else int(row.argmin()) for index, row in zip(forced, table, strict=True)
            ]
            maps, scores = self.score(embeddings, chosen)
            return self._results(table, chosen, maps.cpu().numpy(), scores.tolist())

    def predict_both(self, images: Sequence[np.ndarray], tasks: Sequence[str]) -> list[tuple[Prediction, Prediction]]:
        """Each picture as the router would have it, and with its true task ``tasks[i]`` named; for evaluation.

        The backbone runs once. A picture that is routed to its true task is scored once, and the two are one object.

        Raises:
            UnknownTaskError: a name that was not learned.
        """
        if len(tasks) != len(images):
            raise ValueError(f"tasks must name one entry a picture; got {len(tasks)} for {len(images)} pictures")
        named = [self._checkpoint.header.task(name).index for name in tasks]
        if not images:
            return []
        with torch.inference_mode():
            batch = stack_images(list(images), self.preprocessing.resize, self.device)
            embeddings, distances = self.embed_and_route(batch)
            table = distances.cpu().numpy()
            routed = [int(row.argmin()) for row in table]
            wrong = [row for row, (found, true) in enumerate(zip(routed, named, strict=True)) if found != true]
            rows, chosen = [*range(len(images)), *wrong], [*routed, *(named[row] for row in wrong)]
            maps, scores = self.score(embeddings[rows] if wrong else embeddings, chosen)
            results = self._results(table[rows], chosen, maps.cpu().numpy(), scores.tolist())
        again = dict(zip(wrong, results[len(images) :], strict=True))
        return [(result, again.get(row, result)) for row, result in enumerate(results[: len(images)])]

    def embed_and_route(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B, S, S, 3)`` uint8 on the device to embeddings ``(B, H, W, D)`` and distances ``(B, T)``; never waits."""
        with autocast(self.device, self.precision):
            embeddings = self._features(batch)
        return embeddings, self._router(image_descriptor(embeddings))

    def score(self, embeddings: torch.Tensor, tasks: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings and the task of each picture to patch maps ``(B, H, W)`` and scores ``(B,)``; never waits."""
        maps = embeddings.new_empty(embeddings.shape[:3], dtype=torch.float32)
        x = with_position(embeddings)
        for index in sorted(set(tasks)):
            members = [row for row, task in enumerate(tasks) if task == index]
            expert = self._experts.get(index)
            with autocast(self.device, self.precision):
                if len(members) == len(tasks):
                    maps = expert(x)
                    break
                rows = torch.tensor(members).to(self.device, non_blocking=True)
                maps[rows] = expert(x[rows])
        return maps, image_score(maps, self._top_k)

    def warm_up(self, batch_size: int = 1) -> None:
        """Merge the experts that are kept and predict once on blank pictures, so that the first request is not slow."""
        for task in self.tasks[: self._experts.limit]:
            self._experts.get(task.index)
        size = self.preprocessing.image_size
        results = self.predict([np.zeros((size, size, 3), dtype=np.uint8)] * batch_size)
        results[0].pixel_map()  # makes the matrices that bring maps to the model's size, which are kept

    def _merge(self, index: int) -> MergedExpert:
        expert, _ = self._checkpoint.task(index)
        base = self._shared_base or self._checkpoint.base(index).to(self.device)
        return MergedExpert(base, expert.to(self.device), _DTYPES[self.precision])

    def _results(self, table: np.ndarray, chosen: list[int], maps: np.ndarray, scores: list[float]) -> list[Prediction]:
        results = []
        for row, task, grid_map, score in zip(table, chosen, maps, scores, strict=True):
            candidates = [Candidate(info.name, info.index, float(row[info.index])) for info in self.tasks]
            results.append(
                Prediction(
                    task=candidates[task],
                    candidates=tuple(sorted(candidates, key=lambda c: (c.distance, c.index))),
                    score=score,
                    threshold=self.tasks[task].threshold,
                    grid_map=grid_map,
                    model_size=self.preprocessing.image_size,
                )
            )
        return results


class _ExpertCache:
    """Merged experts by index; at most ``limit``, the least recently used goes first. Safe between threads."""

    def __init__(self, make: Callable[[int], MergedExpert], limit: int) -> None:
        self.limit = limit
        self._make, self._lock = make, threading.Lock()
        self._kept: OrderedDict[int, MergedExpert] = OrderedDict()

    def get(self, index: int) -> MergedExpert:
        with self._lock:
            if index not in self._kept:
                self._kept[index] = self._make(index)
                while len(self._kept) > self.limit:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(index)
            return self._kept[index]
