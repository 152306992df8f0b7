"""One file holds everything, gives the same bits back, and whatever is wrong with it is one clear error."""

import json
import pickle
import random
import struct
import time
from pathlib import Path

import pytest
import torch
from forked import Processes
from safetensors.torch import load_file, save_file
from tiny_model import product_image, tiny_base, tiny_checkpoint, tiny_config, tiny_expert

from moleflow.model.detector import Detector
from moleflow.model.errors import (
    BackboneError,
    CheckpointDigestError,
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    UnknownTaskError,
)
from moleflow.model.store.checkpoint import FORMAT_VERSION, Checkpoint, write_checkpoint
from moleflow.model.store.sections import digest_tensors
from moleflow.model.verdict.results import Failure

NAMES = ("bolt", "nut", "gear")


def header_length(data: bytes) -> int:
    return struct.unpack("<Q", data[:8])[0]


def document_of(path: Path) -> dict:
    """The header of ours, as it is written in the file's metadata."""
    data = path.read_bytes()
    return json.loads(json.loads(data[8 : 8 + header_length(data)])["__metadata__"]["moleflow"])


def rewritten(source: Path, target: Path, change) -> Path:  # type: ignore[no-untyped-def]
    """A copy of a checkpoint after ``change(document, tensors)``, with digests as they were."""
    document, tensors = document_of(source), load_file(source)
    change(document, tensors)
    save_file(tensors, target, metadata={"moleflow": json.dumps(document)})
    return target


def section_of(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def test_what_was_saved_is_loaded_to_the_bit(checkpoint: Checkpoint) -> None:
    config = checkpoint.header.config
    base, expert = checkpoint.base(), checkpoint.product(1).expert
    for loaded, original in ((base, tiny_base(config)), (expert, tiny_expert(config, 101))):
        state = original.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_a_copy_predicts_the_same_bits(checkpoint: Checkpoint, detector: Detector, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    write_checkpoint(copy, checkpoint.header, {name: checkpoint.section(name) for name in checkpoint.header.digests()})
    images = [product_image(kind, 70) for kind in range(3)]
    again = Detector.load(copy, device="cpu", precision="fp32").predict(images)
    for one, other in zip(detector.predict(images), again, strict=True):
        assert one.score == other.score
        assert one.candidates == other.candidates
        assert (one.grid_map == other.grid_map).all()


def test_the_header_tells_configuration_preprocessing_and_tasks_in_order(checkpoint: Checkpoint) -> None:
    header = Checkpoint.open(checkpoint.path).header
    assert header.format_version == FORMAT_VERSION == 5
    assert header.config == tiny_config()
    assert header.preprocessing.mean == (0.5, 0.45, 0.4)
    assert [task.name for task in header.tasks] == list(NAMES)
    assert header.task("nut").index == 1
    with pytest.raises(UnknownTaskError, match="No product named 'screw' was learned; learned: bolt, nut, gear"):
        header.task("screw")


def test_the_digest_of_a_checkpoint_changes_with_what_it_holds(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert Checkpoint.open(checkpoint.path).info == checkpoint.info
    other = tiny_checkpoint(tmp_path / "factory.safetensors", names=("bolt", "nut"))
    assert other.info.name == checkpoint.info.name
    assert other.info.digest != checkpoint.info.digest


def test_the_sizes_of_the_sections_add_up_to_the_file(checkpoint: Checkpoint) -> None:
    sizes = checkpoint.section_bytes()
    assert set(sizes) == set(checkpoint.header.digests())
    data = checkpoint.path.read_bytes()
    assert sum(sizes.values()) == len(data) - 8 - header_length(data)


def test_loading_needs_no_weights_but_those_in_the_file(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moleflow.model.features.backbone._read_state", lambda path: pytest.fail("read a weight file"))
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("asked the hub"))
    Detector.load(checkpoint.path, device="cpu")


def test_no_pickle_is_ever_read(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a pickle was read")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    Detector.load(checkpoint.path, device="cpu")
    (tmp_path / "factory.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(CheckpointFormatError):
        Checkpoint.open(tmp_path / "factory.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9999])
def test_a_truncated_file_is_refused(checkpoint: Checkpoint, tmp_path: Path, share: float) -> None:
    data = checkpoint.path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointFormatError, match="cut.safetensors' is not a complete safetensors file .*truncated"):
        Checkpoint.open(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip", b"\x89PNG\r\n", b"no", bytes(1000)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(CheckpointFormatError, match="not a complete safetensors file"):
        Checkpoint.open(tmp_path / "other")


def test_a_path_without_a_file_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="train one with `moleflow train DATA"):
        Checkpoint.open(tmp_path / "none.safetensors")


def test_a_folder_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match="is a folder; name the checkpoint's file"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors", metadata=metadata)
    with pytest.raises(CheckpointFormatError, match="is a safetensors file but not a MoLE-Flow checkpoint"):
        Checkpoint.open(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    "section", ["backbone", "base", "tasks.0.profile", "tasks.2.profile", "tasks.0.expert", "tasks.2.expert"]
)
def test_one_flipped_bit_in_a_tensor_is_found_before_it_is_used(
    checkpoint: Checkpoint, tmp_path: Path, section: str
) -> None:
    data = bytearray(checkpoint.path.read_bytes())
    table = json.loads(data[8 : 8 + header_length(data)])
    start, end = next(
        entry["data_offsets"]
        for key, entry in table.items()
        if key.startswith(f"{section}.") and entry["data_offsets"][0] < entry["data_offsets"][1]
    )
    data[8 + header_length(data) + (start + end) // 2] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    opened = Checkpoint.open(tmp_path / "damaged.safetensors")
    with pytest.raises(CheckpointDigestError, match=f"section '{section}' of .*damaged"):
        opened.verify()
    if section.endswith("expert"):
        index = int(section.split(".")[1])
        detector = Detector.load(tmp_path / "damaged.safetensors", device="cpu")
        assert "damaged" in failure_of(detector, NAMES[index])
    else:
        with pytest.raises(CheckpointDigestError):
            Detector.load(tmp_path / "damaged.safetensors", device="cpu")


def failure_of(detector: Detector, name: str) -> str:
    """What is said instead of a verdict about an image of a product."""
    (found,) = detector.predict([product_image(0, 1)], [name])
    assert isinstance(found, Failure)
    return str(found.error)


def test_other_sections_than_the_damaged_one_can_still_be_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def damage(document: dict, tensors: dict[str, torch.Tensor]) -> None:
        tensors["tasks.1.expert.adapter.beta_logit"][0] += 1

    damaged = Checkpoint.open(rewritten(checkpoint.path, tmp_path / "damaged.safetensors", damage))
    damaged.profile(1)
    damaged.product(0)
    with pytest.raises(CheckpointDigestError):
        damaged.product(1)


def test_a_damaged_expert_keeps_none_of_the_others_from_predicting(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def damage(document: dict, tensors: dict[str, torch.Tensor]) -> None:
        tensors["tasks.1.expert.adapter.beta_logit"][0] += 1

    detector = Detector.load(rewritten(checkpoint.path, tmp_path / "damaged.safetensors", damage), device="cpu")
    for _ in range(2):
        assert "section 'tasks.1.expert'" in failure_of(detector, "nut")
    assert detector.predict([product_image(2, 50)], ["gear"])[0].task.name == "gear"


@pytest.mark.parametrize("change", ["os.truncate(path, 0)", "os.truncate(path, os.stat(path).st_size // 2)", "cut()"])
def test_cutting_the_served_file_is_an_error_of_the_products_that_are_still_to_be_read(
    checkpoint: Checkpoint, tmp_path: Path, processes: Processes, change: str
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(checkpoint.path.read_bytes())
    # In a process of its own: touching a map of a file that was cut would end it by a signal.
    finished = processes.run(
        "import os, sys\nsys.path.insert(0, 'tests/support')\nfrom tiny_model import PLUGIN, product_image\n"
        "from moleflow.model.detector import Detector\n"
        f"path = {str(path)!r}\n"
        "detector = Detector.load(path, device='cpu', plugin=str(PLUGIN))\n"
        "before = detector.predict([product_image(0, 5)], ['bolt'])[0].score\n"
        "def cut():\n"  # and write zeros over it: as long as before, of other bytes
        "    size = os.stat(path).st_size\n    os.truncate(path, 0)\n    os.truncate(path, size)\n"
        f"{change}\n"
        "assert detector.predict([product_image(0, 5)], ['bolt'])[0].score == before\n"
        "print(detector.predict([product_image(2, 5)], ['gear'])[0].error)\n"
    )
    assert finished.status == 0, finished.stderr
    assert ("differs from what was written" if change == "cut()" else "cannot be read") in finished.stdout


def test_a_detector_goes_on_with_the_file_that_it_opened_after_a_newer_one_took_its_place(
    checkpoint: Checkpoint, detector: Detector, tmp_path: Path
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(checkpoint.path.read_bytes())
    opened = Detector.load(path, device="cpu", precision="fp32")
    tiny_checkpoint(path, names=("cog", "pin"), config=tiny_config(dim=8))
    assert [each.name for each in Checkpoint.open(path).header.tasks] == ["cog", "pin"]
    found, expected = (each.predict([product_image(2, 50)])[0] for each in (opened, detector))
    assert (found.grid_map == expected.grid_map).all()


@pytest.mark.parametrize("version", [0, 1, 2, 3, 6, "4", None])
def test_an_unknown_format_version_is_refused_with_both_versions(
    checkpoint: Checkpoint, tmp_path: Path, version: object
) -> None:
    path = rewritten(checkpoint.path, tmp_path / "f", lambda document, _: document.update(format_version=version))
    with pytest.raises(
        CheckpointVersionError, match=f"format version {version!r}; this program reads versions 4 and 5"
    ):
        Checkpoint.open(path)


def break_order(document: dict, tensors: dict) -> None:
    document["tasks"].reverse()


def break_names(document: dict, tensors: dict) -> None:
    document["tasks"][1]["name"] = "bolt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.pop("format_version"), "format_version"),
        (lambda d, t: d.pop("tasks"), "tasks"),
        (lambda d, t: d.update(surprise=1), "surprise"),
        (lambda d, t: d["config"]["flow"].update(lora_rank=0), "lora_rank"),
        (break_order, "numbered in order"),
        (break_names, "named once each"),
    ],
)
def test_a_broken_header_is_refused_in_one_line_that_names_the_field(
    checkpoint: Checkpoint, tmp_path: Path, change, message: str
) -> None:  # type: ignore[no-untyped-def]
    path = rewritten(checkpoint.path, tmp_path / "f", change)
    with pytest.raises(CheckpointFormatError, match=f"header of .* is broken .*{message}") as caught:
        Checkpoint.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("document", ["no JSON", "[1, 2]", "3", ""])
def test_a_header_that_is_no_document_is_refused(tmp_path: Path, document: str) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "f", metadata={"moleflow": document})
    with pytest.raises(CheckpointFormatError, match="is broken"):
        Checkpoint.open(tmp_path / "f")


def redigest(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Make the digests those of the changed tensors, as whoever forges a file would."""
    document["base_sha256"] = digest_tensors(section_of(tensors, "base"))
    for index, task in enumerate(document["tasks"]):
        task["profile_sha256"] = digest_tensors(section_of(tensors, f"tasks.{index}.profile"))
        task["sha256"] = digest_tensors(section_of(tensors, f"tasks.{index}.expert"))


def other_width(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    document["config"]["backbone"]["embedding_dim"] = 32


def more_blocks(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    document["config"]["flow"]["coupling_blocks"] = 3


def no_axes(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    del tensors["tasks.1.profile.prototype.axes"]


def flat_axes(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    tensors["tasks.1.profile.prototype.axes"] = tensors["tasks.1.profile.prototype.axes"].flatten()


def stray_tensor(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    tensors["tasks.1.expert.surprise"] = torch.zeros(2)


def other_type(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    tensors["base.blocks.0.permutation"] = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize("change", [other_width, more_blocks, no_axes, flat_axes, stray_tensor, other_type])
def test_tensors_that_do_not_fit_the_header_are_refused_in_one_line(
    checkpoint: Checkpoint, tmp_path: Path, change
) -> None:  # type: ignore[no-untyped-def]
    def forge(document: dict, tensors: dict[str, torch.Tensor]) -> None:
        change(document, tensors)
        redigest(document, tensors)

    path = rewritten(checkpoint.path, tmp_path / "f", forge)
    with pytest.raises(CheckpointFormatError, match="does not fit its configuration") as caught:
        Detector.load(path, device="cpu").predict([product_image(1, 50)], ["nut"])
    assert "\n" not in str(caught.value)


def test_a_section_that_is_missing_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def drop(document: dict, tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith("tasks.2.")]:
            del tensors[key]

    with pytest.raises(
        CheckpointFormatError, match=r"'tasks\.2\.expert' of .* tensor 'adapter.gamma_logit' is missing"
    ):
        Checkpoint.open(rewritten(checkpoint.path, tmp_path / "f", drop))


def test_a_backbone_that_timm_does_not_know_asks_for_the_plugin(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = rewritten(
        checkpoint.path, tmp_path / "f", lambda d, _: d["config"]["backbone"].update(name="network_of_a_plugin")
    )
    with pytest.raises(BackboneError, match="no model named 'network_of_a_plugin'.*--plugin MODULE"):
        Detector.load(path, device="cpu")


def test_the_digest_of_tensors_depends_on_names_types_shapes_and_bytes() -> None:
    value = torch.arange(4.0)
    variants = [
        {"a": value},
        {"b": value},
        {"a": value.double()},
        {"a": value.view(2, 2)},
        {"a": value + 1},
        {"a": value, "b": torch.empty(0)},
    ]
    assert len({digest_tensors(each) for each in variants}) == len(variants)
    assert digest_tensors({"a": value, "b": value + 1}) == digest_tensors({"b": value + 1, "a": value})
    assert digest_tensors({"a": torch.arange(6.0).view(2, 3).T}) == digest_tensors(
        {"a": torch.arange(6.0).view(2, 3).T.contiguous()}
    )


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    in_the_way = tmp_path / "factory.safetensors"
    in_the_way.mkdir()
    with pytest.raises(CheckpointError, match="cannot be written .*make room, or choose another location"):
        write_checkpoint(in_the_way, checkpoint.header, {name: {} for name in checkpoint.header.digests()})
    assert list(tmp_path.iterdir()) == [in_the_way]


@pytest.mark.parametrize("how", ["section", "stored"])
def test_a_full_disk_is_an_error_that_leaves_the_old_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path, processes: Processes, how: str
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(checkpoint.path.read_bytes())
    # A limit on the size of files fails a write in its middle, as a full disk does.
    finished = processes.run(
        "import resource, signal\nfrom moleflow.model.store.checkpoint import Checkpoint, write_checkpoint\n"
        f"old = Checkpoint.open({str(path)!r})\n"
        f"sections = {{name: old.{how}(name) for name in old.header.digests()}}\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "write_checkpoint(old.path, old.header, sections)\n"
    )
    assert finished.status == 1
    assert "CheckpointError: checkpoint" in finished.stderr
    Checkpoint.open(path).verify()
    assert list(tmp_path.iterdir()) == [path]


def test_kills_of_a_writer_at_random_instants_leave_the_old_or_the_new_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path, processes: Processes
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(checkpoint.path.read_bytes())
    # The writer goes back and forth between two and three tasks.
    code = (
        "from moleflow.model.store.checkpoint import Checkpoint, write_checkpoint\n"
        f"old = Checkpoint.open({str(checkpoint.path)!r})\n"
        "sections = {name: old.stored(name) for name in old.header.digests()}\n"
        "import itertools, pathlib\n"
        "for count in itertools.cycle((2, 3)):\n"
        "    header = old.header.model_copy(update={'tasks': old.header.tasks[:count]})\n"
        f"    write_checkpoint(pathlib.Path({str(path)!r}), header, sections)\n"
    )
    rng = random.Random(1)
    seen = set()
    for _ in range(8):
        before = path.stat().st_mtime_ns
        writer = processes.start(code)
        writer.wait_for(lambda before=before: path.stat().st_mtime_ns != before)
        time.sleep(rng.uniform(0, 0.03))
        writer.kill()
        assert writer.finish().status == -9
        opened = Checkpoint.open(path)
        opened.verify()
        seen.add(len(opened.header.tasks))
    assert seen <= {2, 3}
    write_checkpoint(path, checkpoint.header, {name: checkpoint.stored(name) for name in checkpoint.header.digests()})
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == checkpoint.path.read_bytes()
