"""Predicting on a Ray cluster: many images into a folder of Parquet files, resumably.

Ray Data spreads the images over the workers. A worker writes the rows of its images itself, as one Parquet file that
appears whole or not at all: Ray Data's own writer would leave half a file when a worker is killed. Images that have a
row are skipped by the next run, whichever file the row is in.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet
import ray
import ray.data
import ray.exceptions

from moleflow.cluster.connection import Share, connected
from moleflow.folder.parquet import KNOWN_COLUMNS, row_schema
from moleflow.folder.pipeline import Pipeline, state_of
from moleflow.folder.rows import Known, flatten
from moleflow.folder.run import Done, Request, Tally, check_same
from moleflow.image_files import ImageFile
from moleflow.model.errors import ConfigurationError, describe
from moleflow.model.exported.folder import is_exported
from moleflow.model.files.atomic import atomic_write
from moleflow.model.files.outputs import check_output_folder, writing
from moleflow.model.images.decode import MAX_PIXELS, limit_pixels
from moleflow.model.loading import load_detector
from moleflow.model.runtime.threads import configure_threads
from moleflow.training.progress import Reporter

if TYPE_CHECKING:
    from moleflow.model.loading import AnyDetector

__all__ = ["Loading", "predict_on_ray"]

ROWS_PER_FILE = 512
"""Images that a worker takes at once: what a kill repeats, and the rows of a file."""


@dataclass(frozen=True, slots=True)
class Loading:
    """How a worker loads the model: the arguments of ``load_detector``, and its threads."""

    checkpoint: Path
    options: Mapping[str, Any]
    threads: int


def predict_on_ray(
    detector: "AnyDetector", loading: Loading, request: Request, address: str, share: Share, reporter: Reporter
) -> Tally:
    """Predict for every image that has no row in the folder ``request.output`` yet; rows have absolute paths.

    ``detector`` is the model on this machine, which tells what rows are compared with; the workers load their own. All
    nodes see images, checkpoint and output at the same paths.

    Raises:
        ConfigurationError: the output holds rows of another checkpoint or other options, or a worker cannot work.
    """
    check_output_folder("the folder of rows", request.output)
    tally = Tally()
    done = Done(tally)
    for known in _known(request.output):
        check_same(known, detector, request)
        done.add_known(known)
    found = [ImageFile(file.path.absolute(), file.overlay) for file in request.find(tally.report)]
    left = [file.path for file in found if not done(file, state_of(file.path))]
    if left:
        with connected(address), reporter.phase("images", len(left)) as phase:
            for counts in _counts(left, loading, request, share):
                tally.verdicts.update(counts["verdicts"])
                tally.errors += counts["errors"]
                phase.advance(counts["images"])
    skipped = len(found) - len(left)
    before = f"{skipped:,} had a row already; " if skipped else ""
    reporter.line(f"{len(left):,} images; {before}rows: {tally}")
    return tally


def _known(folder: Path) -> Iterator[Known]:
    """All rows of the files in a folder."""
    for path in sorted(folder.glob("*.parquet")):
        try:
            rows = pyarrow.parquet.read_table(path, columns=list(KNOWN_COLUMNS)).to_pylist()
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ConfigurationError(
                f"{str(path)!r} is no file of rows that `moleflow predict` wrote ({describe(error)}); choose another "
                "folder."
            ) from error
        yield from map(Known.of, rows)


def _counts(paths: list[Path], loading: Loading, request: Request, share: Share) -> Iterator[dict[str, Any]]:
    """What the workers wrote, file by file."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"path": os.fsencode(path)} for path in paths]
    blocks = -(-len(items) // ROWS_PER_FILE)
    workers = max(min(blocks, share.slots(ray.cluster_resources())), 1)
    written = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        _RowWriter,
        fn_constructor_args=(loading, request.output.resolve(), request.task, request.max_pixels or MAX_PIXELS),
        batch_size=ROWS_PER_FILE,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=share.cpus,
        num_gpus=share.gpus or None,
    )
    try:
        for row in written.iter_rows():
            yield {
                "images": row["images"],
                "errors": row["errors"],
                "verdicts": Counter(dict(zip(row["verdicts"], row["counts"], strict=True))),
            }
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise ConfigurationError(
            f"a worker cannot work ({describe(cause)}); rows that are written stay, and the same command goes on."
        ) from error


class _RowWriter:
    """A worker: predicts the images of a batch, and writes their rows."""

    def __init__(self, loading: Loading, output: Path, task: str | None, max_pixels: int) -> None:
        for what, path in (("the checkpoint", loading.checkpoint), ("the output", output)):
            if not path.exists():
                raise ConfigurationError(
                    f"node {ray.util.get_node_ip_address()} does not see {what} {str(path)!r}; put it on storage that "
                    "all nodes mount at this path."
                )
        if not is_exported(loading.checkpoint):
            configure_threads(loading.threads)
        limit_pixels(max_pixels)
        self._detector = load_detector(loading.checkpoint, **loading.options)
        self._output, self._task, self._max_pixels = output, task, max_pixels

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        names = [bytes(name) for name in batch["path"]]
        files = (ImageFile(Path(os.fsdecode(name)), Path()) for name in names)
        rows = [flatten(row) for row in self._pipeline().rows(files)]
        table = pyarrow.Table.from_pylist(rows, row_schema())
        # The same images give the same name, so a batch that Ray repeats replaces its file.
        name = hashlib.sha256(b"\0".join(names)).hexdigest()[:32]
        path = self._output / f"{name}.parquet"
        with writing("the file of rows", path), atomic_write(path) as temporary:
            pyarrow.parquet.write_table(table, temporary)
        verdicts = Counter(row["verdict"] for row in rows if row["verdict"] is not None)
        return {
            "images": [len(rows)],
            "errors": [sum(row["error_type"] is not None for row in rows)],
            "verdicts": [list(verdicts)],
            "counts": [list(verdicts.values())],
        }

    def _pipeline(self) -> Pipeline:
        return Pipeline(self._detector, task=self._task, max_pixels=self._max_pixels)
