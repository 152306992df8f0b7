"""Random damage to the container and to the header: what is accepted the safetensors library accepts too, and reads
alike; what is refused is refused as a checkpoint is. ``python -m benchmarks fuzz_checkpoint`` runs longer."""

from pathlib import Path

import pytest
from checkpoint_fuzz import check_checkpoint, check_container, containers, damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moleflow.model.store.checkpoint import Checkpoint

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(content=containers())
def test_no_container_is_accepted_that_the_library_refuses(content: bytes, tmp_path: Path) -> None:
    check_container(content, tmp_path / "f")


@FEW
@given(content=st.binary(max_size=60))
def test_arbitrary_bytes_are_refused(content: bytes, tmp_path: Path) -> None:
    check_container(content, tmp_path / "f")


@settings(FEW, max_examples=60)
@given(data=st.data())
def test_a_damaged_checkpoint_is_read_rightly_or_refused(
    data: st.DataObject, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    content = data.draw(damaged(checkpoint.path.read_bytes()))
    check_checkpoint(content, tmp_path / "f")


@pytest.mark.parametrize(
    "table",
    [
        b'{"a":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]}}',
        b'{"b":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[true,2],"data_offsets":[8,16]}}',
        b'{"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2.0],"data_offsets":[8,16]}}',
        b'{"a":{"dtype":"F32","shape":[[4]],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":["F32"],"shape":[4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":{"F32":1},"shape":[4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":{},"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}}',
        b'{"a":{"dtype":"F32","shape":"4","data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[false,16]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[-0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16,16]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,1e1]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[NaN,Infinity]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,' + b"9" * 5000 + b"]}}",
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,18446744073709551632]}}',
        b'{"a":{"dtype":"F32","shape":[9223372036854775808,2,0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"__metadata__":{"x":"1"},"__metadata__":{"x":"1"}}',
        b'{"__metadata__":{"x":"1","x":"2"},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"__metadata__":{"x":null},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"__metadata__":{"x":"\\ud800"},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"a\xed\xa0\x80":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.encode("utf-16-le"),
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}\0\0',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":' + b"[" * 200 + b"]" * 200 + b"}}",
        b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}',
    ],
)
def test_tables_that_json_alone_would_let_pass_are_refused(table: bytes, tmp_path: Path) -> None:
    content = len(table).to_bytes(8, "little") + table + bytes(16)
    assert check_container(content, tmp_path / "f") is False
