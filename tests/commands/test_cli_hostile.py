"""Every command rejects a hostile checkpoint with one line on standard error and exit status 1."""

import json
import struct
from pathlib import Path

import pytest
from forked import Processes, moleflow_code
from PIL import Image
from tiny_model import PLUGIN, product_image, tiny_checkpoint, write_product

from moleflow.model.store.checkpoint import Checkpoint

COMMANDS = ("inspect", "predict", "serve", "train", "evaluate")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("hostile") / "factory.safetensors").path


def with_header(whole: Path, target: Path, **changes: object) -> Path:
    """A copy of a checkpoint with changed header fields."""
    content = whole.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    table = json.loads(content[8 : 8 + length])
    document = json.loads(table["__metadata__"]["moleflow"]) | changes
    table["__metadata__"]["moleflow"] = json.dumps(document)
    text = json.dumps(table).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return target


def arguments(command: str, checkpoint: Path, folder: Path) -> list[object]:
    image = folder / "image.png"
    Image.fromarray(product_image(0, 1)).save(image)
    data = write_product(folder / "data", "cog", 3).parent
    return {
        "inspect": ["inspect", checkpoint, "--verify"],
        "predict": ["predict", checkpoint, image, "--plugin", PLUGIN],
        "serve": ["serve", checkpoint, "--port", "0", "--plugin", PLUGIN],
        "train": ["train", data, "--task", "cog", "--checkpoint", checkpoint, "--plugin", PLUGIN],
        "evaluate": ["evaluate", checkpoint, data, "--plugin", PLUGIN],
    }[command]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["table", "tasks"])
def test_every_command_rejects_a_hostile_file_in_one_line(
    processes: Processes, whole: Path, tmp_path: Path, command: str, kind: str
) -> None:
    path = tmp_path / "factory.safetensors"
    if kind == "table":
        text = b'{"a":{"dtype":["F32"],"shape":[[4]],"data_offsets":[0,16]}}'
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    else:
        with_header(whole, path, tasks=[])
    before = path.read_bytes()
    done = processes.run(moleflow_code(*arguments(command, path, tmp_path)))
    assert done.status == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "factory.safetensors" in errors[0]
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["wide_resnet101_2", "vit_giant_patch14_224", "tiny_backbone"])
def test_a_small_file_causes_no_large_allocation(processes: Processes, whole: Path, tmp_path: Path, name: str) -> None:
    config = json.loads(Checkpoint.open(whole).header.model_dump_json())["config"]
    config["backbone"] |= {"name": name, "strides": [14] if name.startswith("vit") else [8, 16]}
    if name == "tiny_backbone":
        config["flow"]["lora_rank"] = 4096
        config["flow"]["coupling_blocks"] = 64
    path = with_header(whole, tmp_path / "factory.safetensors", config=config)
    # Their weights would take 0.5 and 4 GB, and an expert of that rank 0.1 GB, beside PyTorch's own memory.
    done = processes.run(
        "import resource, sys\nsys.path.insert(0, 'tests/support')\nfrom tiny_model import PLUGIN\n"
        "from moleflow.model.detector import Detector\nfrom moleflow.model.errors import CheckpointError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try:\n    Detector.load({str(path)!r}, device='cpu', plugin=str(PLUGIN))\n"
        "except CheckpointError as error:\n    print('does not fit' in str(error))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    refused, megabytes = done.stdout.split()
    assert refused == "True"
    assert int(megabytes) < 64
