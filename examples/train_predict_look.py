"""Train on your folder, predict, and look.

    python examples/train_predict_look.py DATA part.jpg other.jpg --overlays out/

DATA has one folder of good images per product. Each product is learned into the checkpoint unless it is there already;
then every image is judged, and an overlay with its heat map written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.heatmap import overlay
from moleflow.model.verdict.results import Prediction
from moleflow.training.config import PRESETS, preset
from moleflow.training.continual.sequence import train_tasks
from moleflow.training.data.datasets import discover


def learn(data: Path, checkpoint: Path, preset_name: str, epochs: int | None) -> None:
    """Learn the products of ``data`` that the checkpoint does not know yet."""
    chosen = preset(preset_name)
    if epochs is not None:
        chosen = chosen.with_changes(training={"epochs": epochs})
    known = {task.name for task in Checkpoint.open(checkpoint).header.tasks} if checkpoint.exists() else set()
    missing = [name for name in discover(data) if name not in known]
    if missing:
        train_tasks(data, missing, checkpoint, preset=chosen)


def look(checkpoint: Path, images: Sequence[Path], overlays: Path) -> None:
    """Print what is found in each image, and write the image with its heat map into ``overlays``."""
    detector = Detector.load(checkpoint)
    overlays.mkdir(parents=True, exist_ok=True)
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in images]
    for path, image, found in zip(images, pixels, detector.predict(pixels), strict=True):
        print(f"{path}: {found.verdict}")
        if isinstance(found, Prediction):
            print(f"  {found.task.name}: score {found.score:.2f}, threshold {found.threshold:.2f}")
            for each in found.regions(*image.shape[:2]):
                print(f"  region at ({each.x}, {each.y}), {each.width} × {each.height} px, peak {each.peak:.2f}")
            target = overlays / f"{path.stem}_overlay.png"
            Image.fromarray(overlay(image, found)).save(target)
            print(f"  {target}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, predict, look."""
    parser = argparse.ArgumentParser(description="Train on your folder, predict, and look.")
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder with one folder of good images per product")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="images to judge")
    parser.add_argument("--checkpoint", type=Path, default=Path("example.safetensors"))
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--epochs", type=int, help="passes over the images; default: the preset's")
    parser.add_argument("--overlays", type=Path, default=Path("overlays"), help="folder of the overlays")
    options = parser.parse_args(arguments)
    learn(options.data, options.checkpoint, options.preset, options.epochs)
    look(options.checkpoint, options.images, options.overlays)


if __name__ == "__main__":
    main()
