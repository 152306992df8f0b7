"""The container: valid safetensors, read section by section, written without holding what is only copied."""

import gc
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from forked import Processes
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moleflow.model.errors import CheckpointFormatError
from moleflow.model.store.tensor_file import StoredSection, TensorFile, Tensors, write_tensor_file

SECTIONS: dict[str, dict[str, torch.Tensor]] = {
    "backbone": {"conv.weight": torch.randn(3, 5), "steps": torch.tensor([1, 2, 3])},
    "base": {},
    "tasks.0.profile": {"mean": torch.randn(7), "axes": torch.empty(7, 0), "floor": torch.tensor(2.5)},
    "tasks.0.expert": {"half": torch.ones(3).bfloat16(), "flag": torch.ones(1).bool(), "wide": torch.zeros(2).double()},
    "tasks.1.expert": {"half": torch.ones(3).bfloat16(), "flag": torch.zeros(1).bool(), "wide": torch.ones(2).double()},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of all kinds of sections."""
    write_tensor_file(tmp_path / "file", {"note": 'quotes " and ünïcode'}, SECTIONS)
    return tmp_path / "file"


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == value.dtype and torch.equal(one[key], value) for key, value in other.items()
    )


def flat(sections: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, part in sections.items() for key, value in part.items()}


def raw(table: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(table)) + table + data


def entry(begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_sections_come_back_with_types_shapes_and_bits(path: Path) -> None:
    file = TensorFile.open(path)
    assert file.metadata == {"note": 'quotes " and ünïcode'}
    for name, tensors in SECTIONS.items():
        assert same(file.section(name), tensors), name
    assert file.section("tasks.7.expert") == {}


def test_the_safetensors_library_reads_the_same(path: Path) -> None:
    assert same(load_file(path), flat(SECTIONS))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"note": 'quotes " and ünïcode'}


def test_what_the_library_wrote_in_its_own_order_is_read(tmp_path: Path) -> None:
    save_file(flat(SECTIONS), tmp_path / "theirs")
    file = TensorFile.open(tmp_path / "theirs")
    assert file.metadata == {}
    for name, tensors in SECTIONS.items():
        assert same(file.section(name), tensors), name


def test_sizes_count_numbers_and_bytes_of_each_section(path: Path) -> None:
    assert TensorFile.open(path).sizes() == {
        "backbone": (18, 84),
        "tasks.0.profile": (8, 32),
        "tasks.0.expert": (6, 23),
        "tasks.1.expert": (6, 23),
    }


@pytest.mark.parametrize("theirs", [False, True])
def test_stored_sections_are_copied_beside_new_ones(path: Path, tmp_path: Path, theirs: bool) -> None:
    if theirs:
        save_file(flat(SECTIONS), path)
    old = TensorFile.open(path)
    new = {"mean": torch.randn(4)}
    wanted: dict[str, Tensors | StoredSection] = {
        "backbone": StoredSection(old, "backbone"),
        "base": StoredSection(old, "base"),
        "tasks.0.profile": new,
        "tasks.1.expert": StoredSection(old, "tasks.1.expert"),
        "tasks.0.expert": StoredSection(old, "tasks.0.expert"),
    }
    write_tensor_file(tmp_path / "copy", {}, wanted)
    expected = SECTIONS | {"tasks.0.profile": new}
    assert same(load_file(tmp_path / "copy"), flat(expected))
    copy = TensorFile.open(tmp_path / "copy")
    assert all(same(copy.section(name), expected[name]) for name in SECTIONS)


def test_where_the_system_copies_no_files_bounded_pieces_are_read(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError("not here")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr("moleflow.model.store.tensor_file._COPY_BYTES", 10)
    longest = []
    read = os.pread
    old = TensorFile.open(path)
    monkeypatch.setattr(os, "pread", lambda handle, count, at: longest.append(count) or read(handle, count, at))
    write_tensor_file(tmp_path / "copy", {"note": "x"}, {name: StoredSection(old, name) for name in SECTIONS})
    assert max(longest) == 10
    assert same(load_file(tmp_path / "copy"), flat(SECTIONS))


def test_a_copy_in_part_by_the_system_is_finished_by_reading(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.copy_file_range
    results = iter([5, 0])

    def short(source: int, target: int, count: int, offset: int) -> int:
        allowed = next(results)
        return plain(source, target, allowed, offset) if allowed else 0

    monkeypatch.setattr(os, "copy_file_range", short)
    old = TensorFile.open(path)
    write_tensor_file(tmp_path / "copy", {}, {name: StoredSection(old, name) for name in SECTIONS})
    assert same(load_file(tmp_path / "copy"), flat(SECTIONS))


def test_a_file_stays_itself_when_another_takes_its_path(path: Path, tmp_path: Path) -> None:
    file = TensorFile.open(path)
    write_tensor_file(tmp_path / "other", {}, {"backbone": {"conv.weight": torch.zeros(1)}})
    (tmp_path / "other").replace(path)
    assert same(file.section("backbone"), SECTIONS["backbone"])
    assert TensorFile.open(path).section("backbone")["conv.weight"].tolist() == [0]


def test_a_file_that_was_cut_after_it_was_opened_is_an_error_and_no_crash(path: Path) -> None:
    file = TensorFile.open(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointFormatError, match="cannot be read .*shorter than it was"):
        file.section("backbone")


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_crash(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, size = TensorFile.open(path), path.stat()
    os.truncate(path, size.st_size - 40)
    monkeypatch.setattr(os, "fstat", lambda handle: size)  # as it was when the reading began
    with pytest.raises(CheckpointFormatError, match="cannot be read .*ends too early"):
        file.section("tasks.1.expert")


def test_tensors_that_were_read_are_there_whatever_happens_to_the_file(path: Path, processes: Processes) -> None:
    # In a process of its own: touching a map of a file that was cut would end it by a signal.
    finished = processes.run(
        "import os, pathlib\nfrom moleflow.model.store.tensor_file import TensorFile\n"
        f"tensors = TensorFile.open(pathlib.Path({str(path)!r})).section('backbone')\n"
        f"os.truncate({str(path)!r}, 0)\n"
        "print(tensors['steps'].tolist())\n"
    )
    assert (finished.status, finished.stdout.strip()) == (0, "[1, 2, 3]")


def test_tensors_are_copies_that_outlive_the_file_object(path: Path) -> None:
    before = path.read_bytes()
    tensors = TensorFile.open(path).section("backbone")
    gc.collect()
    tensors["conv.weight"].zero_()
    assert not tensors["conv.weight"].any()
    assert path.read_bytes() == before


def test_of_a_section_that_lies_scattered_only_its_own_bytes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(flat(SECTIONS), tmp_path / "theirs")  # ordered by type, so that sections lie in each other
    file, plain, counts = TensorFile.open(tmp_path / "theirs"), os.preadv, []

    def counted(handle: int, buffers: list[memoryview], offset: int) -> int:
        counts.append(plain(handle, buffers, offset))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", counted)
    assert same(file.section("tasks.1.expert"), SECTIONS["tasks.1.expert"])
    assert sum(counts) == 23


def test_a_file_object_that_is_gone_leaves_no_open_file(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        TensorFile.open(path).section("backbone")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


WHOLE = {"a": entry(0, 8), "b": entry(8, 16)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends too early"),
        (b"\0\0\0", "ends too early"),
        (struct.pack("<Q", 2**63), "claims a table of"),
        (struct.pack("<Q", 50) + b"{}", "claims a table of"),
        (raw(b"[1, 2]"), "not a JSON object"),
        (raw(b'{"a": '), "Expecting value"),
        (raw(b'{"a": "\xff"}'), "utf-8"),
        (raw(b'{"a":' + b"[" * 100_000), "recursion"),
        (raw(json.dumps(WHOLE).encode(), bytes(15)), "15 follow the table"),
        (raw(json.dumps(WHOLE).encode(), bytes(17)), "17 follow the table"),
        (raw(json.dumps({"a": entry(0, 8), "b": entry(4, 12)}).encode(), bytes(12)), "overlap or leave gaps"),
        (raw(json.dumps({"a": entry(0, 8), "b": entry(0, 8)}).encode(), bytes(8)), "overlap or leave gaps"),
        (raw(json.dumps({"a": entry(0, 8), "b": entry(12, 20)}).encode(), bytes(20)), "overlap or leave gaps"),
        (raw(json.dumps({"a": entry(4, 12)}).encode(), bytes(12)), "overlap or leave gaps"),
        (raw(json.dumps({"a": entry(0, 12)}).encode(), bytes(12)), "'a' does not have the bytes"),
        (raw(json.dumps({"a": entry(8, 0)}).encode(), bytes(8)), "does not have the bytes"),
        (raw(json.dumps({"a": entry(-8, 0)}).encode(), bytes(8)), "overlap or leave gaps"),
        (raw(json.dumps({"a": entry(0, 2**70)}).encode(), bytes(8)), "that can be"),
        (raw(json.dumps({"a": entry(0, 8, (-2, -1))}).encode(), bytes(8)), "of the shape"),
        (raw(json.dumps({"a": entry(0, 8, dtype="F8_E4M3")}).encode(), bytes(8)), "type 'F8_E4M3'"),
        (raw(json.dumps({"a": {"shape": [2]}}).encode(), bytes(8)), "'a' has no dtype"),
        (raw(json.dumps({"a": 3}).encode(), bytes(8)), "'a' has no dtype"),
        (raw(json.dumps({"__metadata__": {"a": 3}}).encode()), "metadata are not strings"),
        (raw(json.dumps({"__metadata__": [1, 2]}).encode()), "metadata are not strings"),
        (
            raw(b'{"a":%b,"a":%b}' % tuple(json.dumps(each).encode() for each in WHOLE.values()), bytes(16)),
            "comes twice",
        ),
    ],
)
def test_a_table_that_cannot_be_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CheckpointFormatError, match=f"not a complete safetensors file .*{message}") as caught:
        TensorFile.open(tmp_path / "f")
    assert "\n" not in str(caught.value)


def test_the_table_in_those_tests_is_accepted_when_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(raw(json.dumps(WHOLE).encode(), struct.pack("<4f", 1, 2, 3, 4)))
    assert TensorFile.open(tmp_path / "f").sizes() == {"": (4, 16)}
    assert TensorFile.open(tmp_path / "f").section("")["b"].tolist() == [3, 4]


def test_more_tensors_than_the_format_allows_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moleflow.model.store.tensor_table.MAX_TABLE_BYTES", 100)
    with pytest.raises(ValueError, match="table of its tensors would have .* bytes, more than 100"):
        write_tensor_file(tmp_path / "f", {}, SECTIONS)
    assert not (tmp_path / "f").read_bytes()


def test_reading_and_copying_a_large_file_needs_memory_for_what_is_touched_only(
    tmp_path: Path, processes: Processes
) -> None:
    megabytes, path = 256, tmp_path / "large"
    with path.open("wb") as target:
        count = megabytes * 2**18
        half = count * 2
        table = {f"tasks.{k}.expert.w": entry(k * half, (k + 1) * half, (count // 2,)) for k in range(2)}
        table["tasks.2.expert.w"] = entry(2 * half, 2 * half + 8)
        text = json.dumps(table).encode()
        target.write(raw(text))
        target.truncate(8 + len(text) + 2 * half + 8)
    finished = processes.run(
        "import resource, pathlib, torch\nfrom moleflow.model.store.tensor_file import *\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"old = TensorFile.open(pathlib.Path({str(path)!r}))\n"
        "before = peak()\n"
        "old.section('tasks.2.expert')['w'].sum()\n"
        "parts = {f'tasks.{k}.expert': StoredSection(old, f'tasks.{k}.expert') for k in range(3)}\n"
        f"write_tensor_file(pathlib.Path({str(tmp_path / 'copy')!r}), {{}}, parts)\n"
        "print((peak() - before) // 1024)\n"
    )
    assert finished.status == 0, finished.stderr
    assert int(finished.stdout) < megabytes / 4
    assert (tmp_path / "copy").stat().st_size > megabytes * 2**20
