"""A cache survives kills, full disks and other processes: an embedding is complete, computed again, or an error."""

import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_caches import embed, files, opened, values
from forked import Processes

import moleflow.training.embeddings.extraction
from moleflow.model.errors import ConfigurationError
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.files.atomic import atomic_write
from moleflow.training.data import white_levels
from moleflow.training.data.datasets import read_image
from moleflow.training.embeddings import cache as module
from moleflow.training.errors import DatasetError


def test_stale_temporary_files_are_removed_and_those_in_use_are_not(features: FeatureExtractor, tmp_path: Path) -> None:
    folder = opened(tmp_path, features).folder
    left = folder / "ab" / ".old.npy.0.tmp"
    left.mkdir(parents=True)
    (left / "half.npy").write_bytes(b"half")
    with atomic_write(folder / "ab" / "new.npy") as writing:
        writing.write_bytes(b"half")
        opened(tmp_path, features)
        assert writing.exists()
    assert not left.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_partial_file_counts_as_missing(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path, share: float
) -> None:
    cache = opened(tmp_path, features)
    expected = values(embed(cache, features, paths))
    damaged = files(cache)[3]
    data = damaged.read_bytes()
    damaged.write_bytes(data[: int(len(data) * share)])
    assert torch.allclose(values(embed(cache, features, paths)), expected, atol=1e-5)
    assert damaged.stat().st_size == len(data)


def test_a_file_stays_readable_while_another_process_rewrites_it(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path
) -> None:
    cache = opened(tmp_path, features)
    found = embed(cache, features, paths)
    expected = values(found)
    for path in files(cache):
        new = path.with_suffix(".new")
        shutil.copy(path, new)
        new.replace(path)
    assert torch.equal(values(found), expected)


@pytest.mark.parametrize("change", ["cut", "emptied", "removed", "of other numbers"])
def test_a_file_changed_while_in_use_is_an_error_and_not_a_crash(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path, change: str
) -> None:
    cache = opened(tmp_path, features)
    found = embed(cache, features, paths)
    for path in files(cache):
        match change:
            case "cut":
                os.truncate(path, path.stat().st_size - 1)
            case "emptied":
                os.truncate(path, 0)
            case "removed":
                path.unlink()
            case _:
                np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(ConfigurationError, match="removed or changed while in use"):
        values(found)


def test_a_file_of_another_shape_is_an_error_that_names_it(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path
) -> None:
    cache = opened(tmp_path, features)
    embed(cache, features, paths)
    np.save(files(cache)[0], np.zeros((2, 2, 2), np.float32))
    with pytest.raises(ConfigurationError, match="is from another network"):
        embed(cache, features, paths)


def test_a_removed_image_is_an_error_that_names_it(features: FeatureExtractor, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.png cannot be read"):
        embed(opened(tmp_path, features), features, (tmp_path / "gone.png",))


def test_a_cache_that_cannot_be_written_is_an_error_that_says_what_to_do(
    features: FeatureExtractor, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigurationError, match="embedding cache .* cannot be written .*--cache"):
        opened(tmp_path / "file", features)


def test_a_cache_emptied_while_in_use_is_an_error(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_save", lambda path, value: path.write_bytes(b""))
    with pytest.raises(ConfigurationError, match="was removed or changed while in use"):
        embed(opened(tmp_path, features), features, paths)


def test_embeddings_from_before_an_interruption_are_kept(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moleflow.training.embeddings.extraction, "EXTRACTION_BATCH", 4)
    cache = opened(tmp_path / "cache", features)
    decoded: list[Path] = []

    failing = True

    def read(path: Path, side: int) -> np.ndarray:
        if failing and path == paths[8]:
            raise KeyboardInterrupt
        decoded.append(path)
        return read_image(path, side)

    monkeypatch.setattr(white_levels, "read_image", read)
    with pytest.raises(KeyboardInterrupt):
        embed(cache, features, paths)
    assert len(files(cache)) == 8
    decoded.clear()
    failing = False
    found = embed(cache, features, paths)
    assert sorted(decoded) == sorted(paths[8:])
    whole = embed(opened(tmp_path / "other", features), features, paths)
    assert torch.allclose(values(found), values(whole), atol=1e-5)


WRITER = """
import os, sys
sys.path[:0] = [{support!r}]
import torch
from pathlib import Path
from tiny_model import PLUGIN, tiny_config
from moleflow.model.features.backbone import Backbone, import_plugin
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.training.embeddings.cache import EmbeddingCache
from moleflow.training.data.datasets import load_category
torch.set_num_threads(1)
import_plugin(str(PLUGIN))
config, cpu, folder = tiny_config(), torch.device("cpu"), Path({folder!r})
features = FeatureExtractor(config, Backbone.pretrained(config.backbone))
paths = load_category(Path({data!r}), "nut").train
(folder / f"ready.{{os.getpid()}}").touch()
for number in range({times}):
    cache = EmbeddingCache.open(folder / str(number), config.backbone, features.backbone, device=cpu, precision="fp32")
    found = cache.embed(features, paths)
    torch.save(found.batch(torch.arange(len(paths)), cpu), folder / f"{{os.getpid()}}.{{number}}.pt")
"""


def writer_code(products: Path, folder: Path, times: int) -> str:
    """Embeds all images of a product ``times`` times, each time into a new cache."""
    support = str(Path(__file__).parents[2] / "support")
    return WRITER.format(support=support, folder=str(folder), data=str(products), times=times)


def test_two_processes_can_fill_a_cache_at_once(
    features: FeatureExtractor, paths: tuple[Path, ...], products: Path, tmp_path: Path, processes: Processes
) -> None:
    writers = [processes.start(writer_code(products, tmp_path, times=4)) for _ in range(2)]
    assert [writer.finish().status for writer in writers] == [0, 0]
    expected = values(embed(opened(tmp_path / "expected", features), features, paths))
    for writer in writers:
        for number in range(4):
            found = torch.load(tmp_path / f"{writer.pid}.{number}.pt", weights_only=True)
            assert torch.allclose(found, expected, atol=1e-5)
    assert not list(tmp_path.rglob("*.tmp"))


def test_killing_two_writers_leaves_only_complete_files(
    features: FeatureExtractor, paths: tuple[Path, ...], products: Path, tmp_path: Path, processes: Processes
) -> None:
    writers = [processes.start(writer_code(products, tmp_path, times=10**6)) for _ in range(2)]
    for writer in writers:
        writer.wait_for((tmp_path / f"ready.{writer.pid}").exists)
    time.sleep(random.uniform(0, 0.3))
    for writer in writers:
        writer.kill()
    assert [writer.finish().status for writer in writers] == [-9, -9]  # both ran until they were killed
    # Temporary folders may have partial files, which nobody reads.
    kept = [path for path in tmp_path.rglob("*.npy") if path.parent.suffix != ".tmp"]
    assert all(np.load(path).shape == (4, 4, 16) for path in kept)
    found, expected = (embed(opened(tmp_path / name, features), features, paths) for name in ("0", "expected"))
    assert torch.allclose(values(found), values(expected), atol=1e-5)
