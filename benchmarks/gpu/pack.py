"""Prepare one folder to carry to a machine with a GPU, for ``python -m benchmarks gpu``.

    python -m benchmarks gpu_pack --output DIR --data DIR --weights FILE --stand-in FILE --products NAME NAME/3 …

It holds the products' images as they are, the backbone's weights with convolutions in half precision, the plugin that
registers the backbone, the load generator wrk with its library where it is installed, and a README.txt. NAME/3 takes
every third image of each of a product's folders, with its masks. The gate: all together fit into --limit-mb.
"""

import argparse
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.shared.command import Gate, finish, make_parser
from benchmarks.shared.errors import BenchmarkError
from moleflow.model.config import BackboneConfig
from moleflow.model.features.backbone import Backbone, import_plugin
from moleflow.training.data.datasets import load_category

__all__ = ["copy_libraries", "copy_product", "halve"]

EVERYWHERE = ("libc.", "libm.", "libpthread.", "libdl.", "librt.", "ld-linux", "libgcc_s.", "libssl.", "libcrypto.")
"""Libraries that every machine has, or that must be its own."""

README = """Carried data for `python -m benchmarks gpu`. In the repository, with its packages installed, run:
{command}
The images belong to their owners and are for measuring only; nothing learned from them may be shipped.
"""


def copy_product(data: Path, name: str, target: Path, every: int = 1) -> int:
    """Copy every so many images of each folder of a product, with their masks; returns the number of images."""
    category = load_category(data, name, check=False)
    root = data / name
    kept: list[tuple[Path, tuple[Path, ...]]] = [(path, ()) for path in category.train[::every]]
    count = len(kept)
    for _, samples in groupby(category.test, key=lambda sample: sample.path.parent):
        chosen = list(samples)[::every]
        kept += [(sample.path, tuple(sample.masks)) for sample in chosen]
        count += len(chosen)
    for image, masks in kept:
        for path in (image, *masks):
            copied = target / name / path.relative_to(root)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
    return count


def halve(weights: Path, target: Path) -> None:
    """Write the weights with convolutions and matrices in float16.

    Vectors stay as they are: variances of a batch normalisation may be too small for float16.
    """
    state = load_file(weights)
    small = {
        key: value.half() if value.is_floating_point() and value.ndim > 1 else value for key, value in state.items()
    }
    broken = [key for key, value in small.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise BenchmarkError(f"{broken[0]} in {weights} does not fit into half precision.")
    save_file({key: value.contiguous() for key, value in small.items()}, target)


def copy_libraries(program: Path, target: Path) -> list[str]:
    """Copy a program and the shared libraries that a machine may lack beside it; returns the files' names."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, target / program.name)
    names = [program.name]
    try:
        said = subprocess.run(["ldd", str(program)], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return names
    for line in said.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        path = Path(rest.split(" (")[0]) if arrow else None
        if path is not None and path.is_file() and not name.startswith(EVERYWHERE):
            shutil.copy(path.resolve(), target / name)
            names.append(name)
    return names


def check_weights(weights: Path, plugin: Path, backbone: str) -> None:
    """Load the copy as a training does. ``BackboneError`` when it does not fit."""
    import_plugin(str(plugin))
    Backbone.pretrained(BackboneConfig(name=backbone), weights)


def named(text: str) -> tuple[str, int]:
    """``NAME`` or ``NAME/N``, for ``argparse``."""
    name, slash, number = text.partition("/")
    every = int(number) if slash else 1
    if every < 1 or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is neither NAME nor NAME/N")
    return name, every


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("gpu_pack", __doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write; must be empty")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with one folder per product")
    parser.add_argument("--products", type=named, nargs="+", required=True, metavar="NAME", help="NAME or NAME/N")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="the backbone's, safetensors")
    parser.add_argument("--stand-in", type=Path, required=True, metavar="FILE", help="module that registers it")
    parser.add_argument("--backbone", metavar="NAME", help="its timm name; given, the copy is loaded as a check")
    parser.add_argument("--wrk", default="wrk", help="the load generator; default: the one that is installed")
    parser.add_argument("--limit-mb", type=float, default=52, help="the most that all files may take; default: 52")
    options = parser.parse_args(arguments)
    target: Path = options.output
    if target.exists() and any(target.iterdir()):
        raise BenchmarkError(f"{target} is not empty; name another folder, or remove it.")
    lines = []
    for name, every in options.products:
        count = copy_product(options.data, name, target / "data", every)
        lines.append(f"{name}: {count} images, {size_of(target / 'data' / name) / 1e6:.1f} MB")
    halve(options.weights, target / "weights.safetensors")
    plugin = target / options.stand_in.name
    shutil.copyfile(options.stand_in, plugin)
    if options.backbone:
        check_weights(target / "weights.safetensors", plugin, options.backbone)
    lines.append(f"weights: {(target / 'weights.safetensors').stat().st_size / 1e6:.1f} MB")
    if found := shutil.which(options.wrk):
        lines.append(f"load generator: {', '.join(copy_libraries(Path(found), target / 'wrk'))}")
    (target / "README.txt").write_text(README.format(command=_command(options, target)), encoding="utf-8")
    size = size_of(target) / 1e6
    gate = Gate("size of the folder, MB", f"{size:.1f}", f"≤ {options.limit_mb:g}", size <= options.limit_mb)
    return finish(None, {}, "\n".join(lines), [gate])


def _command(options: argparse.Namespace, target: Path) -> str:
    """How to use the folder where it will be."""
    words: Iterable[str] = [
        "python -m benchmarks gpu --output results --minutes 15",
        f"--data {target}/data --products {' '.join(name for name, _ in options.products)}",
        f"--backbone {options.backbone or 'NAME'} --weights {target}/weights.safetensors",
        f"--plugin {target}/{options.stand_in.name}",
        f"--wrk {target}/wrk/{Path(options.wrk).name}",
    ]
    return " ".join(words)
