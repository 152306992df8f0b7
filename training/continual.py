"""The continual trainer: learn products one after another into one checkpoint, never touching the earlier ones."""

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from model.backbone import Backbone
from model.checkpoint import Checkpoint, Header, Tensors, digest_tensors, task_tensors, write_checkpoint
from model.config import ModelConfig
from model.errors import ConfigurationError, DatasetError, DuplicateTaskError
from model.features import FeatureExtractor
from model.merged import MergedExpert
from model.network import Base, with_position
from model.results import TaskInfo
from model.router import Prototype, image_descriptor
from model.runtime import autocast, resolve_device, resolve_precision
from model.scoring import image_score
from training.cache import EmbeddingCache
from training.config import Preset, TrainingConfig
from training.datasets import Category, load_category, read_picture
from training.embeddings import Embeddings, EmbeddingStore
from training.journal import Journal, exclusive, side_file
from training.report import Reporter
from training.task import TaskTrainer, task_seed

__all__ = ["ContinualTrainer", "split_held_out", "train_tasks"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Shared:
    """The parts of a checkpoint that no later task changes, unless ``FlowConfig.sharing`` says so of the base."""

    config: ModelConfig
    features: FeatureExtractor
    base: Base
    cache: EmbeddingCache | None


def train_tasks(
    data: Path,
    tasks: Sequence[str],
    checkpoint: Path,
    *,
    preset: Preset,
    backbone_weights: Path | None = None,
    replace: bool = False,
    device: str = "auto",
    precision: str = "auto",
    cache: Path | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Learn ``tasks`` from ``data`` in the order given, each written to ``checkpoint`` as soon as it is learned.

    Every picture is checked before any training. An existing checkpoint is added to, and its own configuration
    counts; ``preset.model`` and ``backbone_weights`` are for a new one. Given again after an interruption, the same
    call goes on where it stopped. Files beside the checkpoint, with its name in front: ``.history.jsonl``
    (stays), ``.training`` and ``.journal`` (until the call is through), ``.lock``. ``cache`` is a folder that keeps
    embeddings for later calls (``training.cache``).

    Raises:
        DatasetError, DuplicateTaskError, ConfigurationError, BackboneError, CheckpointError, DeviceError.
    """
    trainer = ContinualTrainer(
        checkpoint, preset, device=device, precision=precision, cache=cache, reporter=reporter or Reporter()
    )
    repeated = {name for name in tasks if list(tasks).count(name) > 1}
    if repeated:
        raise DuplicateTaskError(f"task {min(repeated)!r} is named more than once; name each product once.")
    with exclusive(checkpoint):
        journal_path = side_file(checkpoint, ".journal")
        asked = f"{list(tasks)}|{replace}|{preset.training.model_dump_json()}"
        fingerprint = hashlib.sha256(asked.encode()).hexdigest()
        known = trainer.known()
        earlier = Journal.find(journal_path, fingerprint)
        # A call that adds began when none of its tasks was known: what is in the checkpoint now is its own work, even
        # if it was killed before it could note so. And what is not there is not done, whatever was noted.
        begun: Sequence[str] = () if earlier is None else earlier.done if replace else tasks
        journal = Journal(fingerprint=fingerprint, done=[name for name in begun if name in known])
        trainer.check_names([name for name in tasks if name not in journal.done], replace=replace)
        categories = [load_category(data, name) for name in tasks if name not in journal.done]
        for category in categories:
            split_held_out(category, preset.training)  # too few pictures are an error now, not after hours
        journal.write(journal_path)
        shared = trainer.shared_parts(backbone_weights)
        for category in categories:
            trainer.learn(category, shared)
            journal.done.append(category.name)
            journal.write(journal_path)
        journal_path.unlink(missing_ok=True)


def split_held_out(category: Category, training: TrainingConfig) -> tuple[list[Path], list[Path]]:
    """Good pictures for the fit, and good pictures held out of it; drawn by the task's own seed.

    Raises:
        DatasetError: fewer than two good pictures.
    """
    count = len(category.train)
    if count < 2:
        raise DatasetError(
            f"product {category.name!r} has {count} good picture; at least 2 are needed, 30 or more are better."
        )
    wanted = max(round(training.held_out_fraction * count), min(training.min_held_out, count // 3), 1)
    wanted = min(wanted, count - 1)
    generator = torch.Generator().manual_seed(task_seed(training.seed, category.name, "held out"))
    chosen = set(torch.randperm(count, generator=generator)[:wanted].tolist())
    kept = [path for index, path in enumerate(category.train) if index not in chosen]
    return kept, [category.train[index] for index in sorted(chosen)]


class ContinualTrainer:
    """Adds tasks to one checkpoint file."""

    def __init__(
        self,
        path: Path,
        preset: Preset,
        *,
        device: str,
        precision: str,
        reporter: Reporter,
        cache: Path | None = None,
    ) -> None:
        self.path, self.preset, self.training, self.reporter = path, preset, preset.training, reporter
        self.cache = cache
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.reporter.history = self.reporter.history or side_file(path, ".history.jsonl")
        self._state_path = side_file(path, ".training")

    def known(self) -> list[str]:
        """Names of the tasks in the checkpoint, in order of learning; none while there is no file."""
        return [task.name for task in Checkpoint.open(self.path).header.tasks] if self.path.exists() else []

    def check_names(self, names: Sequence[str], *, replace: bool) -> None:
        """Refuse names that were learned already, unless they are to be replaced and are not the first.

        Raises:
            DuplicateTaskError, ConfigurationError, UnknownTaskError.
        """
        known = self.known()
        sharing = Checkpoint.open(self.path).header.config.flow.sharing if known else "frozen"
        if replace and sharing == "sequential":
            raise ConfigurationError(
                "the base of this checkpoint learns with every task (sharing: sequential), so replacing one would "
                "change every other product; train a new checkpoint instead."
            )
        for name in names:
            if replace and known and name == known[0] and sharing != "separated":
                raise ConfigurationError(
                    f"task {name!r} was learned first and the base with it, so replacing it would change every other "
                    "product; train a new checkpoint instead."
                )
            if name in known and not replace:
                raise DuplicateTaskError(
                    f"product {name!r} was learned already into {str(self.path)!r}; retrain it with --replace, or "
                    "leave it out."
                )
            if replace and name not in known:
                raise ConfigurationError(
                    f"there is no product {name!r} to replace in {str(self.path)!r}; leave out --replace to add it."
                )

    def shared_parts(self, backbone_weights: Path | None) -> _Shared:
        """Backbone and base: from the checkpoint where there is one, else new.

        Raises:
            BackboneError, CheckpointError.
        """
        if self.path.exists():
            checkpoint = Checkpoint.open(self.path)
            config, backbone, base = checkpoint.header.config, checkpoint.backbone(), checkpoint.base()
        else:
            config = self.preset.model
            backbone = Backbone.pretrained(config.backbone, backbone_weights)
            base = self._new_base(config)
        features = FeatureExtractor(config, backbone).to(self.device)
        cache = self.cache and EmbeddingCache.open(
            self.cache, config.backbone, features, device=self.device, precision=self.precision
        )
        return _Shared(config, features, base.to(self.device), cache or None)

    def _new_base(self, config: ModelConfig) -> Base:
        """A base as it is before the first task; its seed is the run's alone, so that it is the same for every task."""
        return Base(config, seed=task_seed(self.training.seed, "", "base"))

    def learn(self, category: Category, shared: _Shared) -> TaskInfo:
        """Learn one product and write the checkpoint with it. An interrupted fit is continued.

        Raises:
            DatasetError: too few good pictures, or one became unreadable.
        """
        started = time.perf_counter()
        fit_paths, held_out_paths = split_held_out(category, self.training)
        flow = shared.config.flow
        first = flow.starts_base(self._index_of(category.name))
        if first and self.path.exists():
            shared = dataclasses.replace(shared, base=self._new_base(shared.config).to(self.device))
        trainer = TaskTrainer(
            category.name, shared.config, self.training, shared.base,
            first=first, device=self.device, precision=self.precision,
        )  # fmt: skip
        fingerprint = self._fingerprint(category, shared)
        try:
            if trainer.restore(self._state_path, fingerprint):
                self.reporter.line(f"{category.name}: continues after epoch {trainer.epoch} of {self.training.epochs}")
        except ValueError as error:
            self.reporter.line(f"{category.name}: starts anew, since {error}")
        with self._embed(category.name, fit_paths, shared) as store:
            self._fit(trainer, store, fingerprint)
            every = torch.arange(len(store))
            descriptors = torch.cat([image_descriptor(store.batch(part, _CPU)) for part in every.split(64)])
        prototype = Prototype.fit(descriptors, shared.config.router)
        shared.base.requires_grad_(False)
        trainer.expert.requires_grad_(False)
        with self._embed(category.name, held_out_paths, shared) as store:
            scores = self._held_out_scores(trainer, store, shared)
        tensors = task_tensors(trainer.expert, prototype, scores)
        if flow.sharing == "separated":
            tensors |= {f"base.{key}": value for key, value in _state(shared.base).items()}
        info = TaskInfo(
            name=category.name,
            index=self._index_of(category.name),
            learned_at=datetime.now(UTC),
            train_images=len(fit_paths),
            held_out_images=len(held_out_paths),
            epochs=self.training.epochs,
            seed=self.training.seed,
            threshold=torch.quantile(scores.double(), self.training.threshold_quantile).item(),
            threshold_quantile=self.training.threshold_quantile,
            parameters=sum(value.numel() for value in tensors.values()),
            sha256=digest_tensors(tensors),
        )
        self._write(shared, info, tensors)
        self._state_path.unlink(missing_ok=True)
        seconds = time.perf_counter() - started
        size = self.path.stat().st_size
        self.reporter.line(
            f"{category.name}: learned from {info.train_images} pictures in {seconds:.0f} s, threshold "
            f"{info.threshold:.1f} from {info.held_out_images} held-out; {self.path.name} is {size / 1e6:.1f} MB"
        )
        added = sum(value.numel() * value.element_size() for value in tensors.values())
        self.reporter.record(
            "task", name=info.name, seconds=round(seconds, 1), images=info.train_images, epochs=info.epochs,
            threshold=info.threshold, task_bytes=added, checkpoint_bytes=size,
        )  # fmt: skip
        return info

    def _index_of(self, name: str) -> int:
        known = self.known()
        return known.index(name) if name in known else len(known)

    def _fingerprint(self, category: Category, shared: _Shared) -> str:
        """Of everything that the weights of this task depend on, by content."""
        digest = hashlib.sha256()
        base = "" if not self.path.exists() else Checkpoint.open(self.path).header.base_sha256
        for part in (
            category.name,
            shared.config.model_dump_json(),
            self.training.model_dump_json(),
            base,
            self.precision,
        ):
            digest.update(f"{part}\n".encode())
        digest.update(digest_tensors(shared.features.backbone.net.state_dict()).encode())
        for path in category.train:
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def _embed(self, name: str, paths: Sequence[Path], shared: _Shared) -> Embeddings:
        with self.reporter.phase(f"{name}: embeddings", len(paths)) as phase:
            if shared.cache is not None:
                return shared.cache.embed(
                    shared.features, paths, read_picture, device=self.device, precision=self.precision,
                    on_progress=phase.advance,
                )  # fmt: skip
            return EmbeddingStore.compute(
                shared.features, paths, read_picture, device=self.device, precision=self.precision,
                folder=self.path.parent, on_progress=phase.advance,
            )  # fmt: skip

    def _fit(self, trainer: TaskTrainer, store: Embeddings, fingerprint: str) -> None:
        total = len(store) * self.training.epochs
        with self.reporter.phase(trainer.name, total, done=len(store) * trainer.epoch) as phase:

            def on_step(images: int, loss: torch.Tensor) -> None:
                # Reading the loss waits for the device, so it is read only where it is shown.
                phase.advance(images, f"loss {loss.item():.1f}" if phase.shows_bar else "")

            started = time.perf_counter()
            for result in trainer.epochs(store, on_step):
                seconds = time.perf_counter() - started
                trainer.save(self._state_path, fingerprint)
                self.reporter.record(
                    "epoch", name=trainer.name, epoch=result.epoch, loss=result.loss, nll=result.nll,
                    learning_rate=result.learning_rate, images_per_second=round(phase.rate, 2),
                    seconds=round(seconds, 3),
                )  # fmt: skip
                if not phase.shows_bar:
                    self.reporter.line(
                        f"{trainer.name}: epoch {result.epoch}/{self.training.epochs}  loss {result.loss:.1f}  "
                        f"NLL {result.nll:.1f}  {phase.rate:.1f} images/s"
                    )
                started = time.perf_counter()

    def _held_out_scores(self, trainer: TaskTrainer, store: Embeddings, shared: _Shared) -> torch.Tensor:
        """Image scores of the held-out pictures, ascending, computed as prediction does it."""
        expert = MergedExpert(shared.base, trainer.expert)
        scores = []
        with torch.inference_mode(), autocast(self.device, self.precision):
            for indices in torch.arange(len(store)).split(8):
                nll = expert(with_position(store.batch(indices, self.device)))
                scores.append(image_score(nll, shared.config.score_top_k).cpu())
        return torch.cat(scores).sort().values

    def _write(self, shared: _Shared, info: TaskInfo, tensors: Tensors) -> None:
        """Write the checkpoint with ``info`` added or replaced; sections of the others are copied as they are."""
        old = Checkpoint.open(self.path) if self.path.exists() else None
        if old is not None:
            infos = list(old.header.tasks)
            sections: list[Tensors] = [old.section(f"tasks.{task.index}") for task in infos]
            backbone = old.section("backbone")
            infos[info.index : info.index + 1], sections[info.index : info.index + 1] = [info], [tensors]
        else:
            infos, sections = [info], [tensors]
            backbone = _state(shared.features.backbone.net)
        match shared.config.flow.sharing:
            case "frozen":
                base = old.section("base") if old is not None else _state(shared.base)
            case "sequential":
                base = _state(shared.base)
            case "separated":
                base = {}  # each task's section has its own
        header = Header(
            preset=old.header.preset if old else self.preset.name,
            config=shared.config,
            preprocessing=shared.features.preprocessing,
            backbone_sha256=digest_tensors(backbone),
            base_sha256=digest_tensors(base),
            tasks=tuple(infos),
        )
        write_checkpoint(self.path, header, backbone, base, sections)


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu() for key, value in module.state_dict().items()}
