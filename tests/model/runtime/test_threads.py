"""Thread counts and wait policy: the user's settings win, before PyTorch is loaded."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked import ROOT

from moleflow.model.errors import ConfigurationError
from moleflow.model.runtime import threads
from moleflow.model.runtime.threads import (
    THREAD_POLICY,
    available_processors,
    configure_threads,
    helper_threads,
    prepare_threads,
)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of the thread variables is set; changes by a test are undone."""
    for name in (*THREAD_POLICY, "MOLEFLOW_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
    return monkeypatch


def test_idle_threads_sleep_by_default(bare: pytest.MonkeyPatch) -> None:
    prepare_threads()
    assert {name: os.environ[name] for name in THREAD_POLICY} == THREAD_POLICY


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_a_wait_policy_in_the_environment_is_not_changed(bare: pytest.MonkeyPatch, name: str) -> None:
    bare.setenv(name, "mine")
    prepare_threads()
    assert os.environ[name] == "mine"
    assert not any(os.environ[other] for other in THREAD_POLICY if other not in (name, "OPENBLAS_NUM_THREADS"))
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"


def test_openblas_threads_in_the_environment_are_not_changed(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("OPENBLAS_NUM_THREADS", "3")
    prepare_threads()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.fixture
def count_kept() -> Iterator[None]:
    """Later tests run with as many threads as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_thread_count_is_the_argument_then_the_environment_then_all_processors(
    bare: pytest.MonkeyPatch, count_kept: None
) -> None:
    bare.setenv("MOLEFLOW_THREADS", "2")
    assert configure_threads(1) == 1
    assert configure_threads() == 2
    bare.setenv("MOLEFLOW_THREADS", "")
    bare.setenv("OMP_NUM_THREADS", "3,1")
    assert configure_threads() == 3
    bare.setenv("OMP_NUM_THREADS", "")
    assert configure_threads() == available_processors()


@pytest.mark.parametrize("value", ["many", "-1", "1.5"])
def test_an_invalid_thread_count_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MOLEFLOW_THREADS", value)
    with pytest.raises(ConfigurationError, match=value):
        configure_threads()


def test_zero_threads_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1; got 0"):
        configure_threads(0)


@pytest.mark.parametrize(
    ("quota", "most"), [("150000 100000", 2), ("10000 100000", 1), ("max 100000", 10**6), ("100000000 100000", 1000)]
)
def test_a_container_quota_limits_the_thread_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, most: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(threads, "_CPU_QUOTA", tmp_path / "cpu.max")
    bound = len(os.sched_getaffinity(0))
    assert available_processors() == min(bound, most)
    assert 1 <= helper_threads() <= available_processors()


COMMAND = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "numpy") and not seen.get(name):
            seen[name] = os.environ.get("OMP_WAIT_POLICY"), os.environ.get("OPENBLAS_NUM_THREADS")
        if len(seen) == 2:
            raise SystemExit  # PyTorch itself would take seconds
seen = {}
sys.meta_path.insert(0, Watch())
sys.argv = ["moleflow", "inspect", "missing.safetensors"]
from moleflow.__main__ import main
try:
    main()
except SystemExit:
    print(sorted(seen.items()))
"""


def test_the_command_sets_the_policy_before_it_loads_pytorch_and_numpy() -> None:
    variables = {name: value for name, value in os.environ.items() if name not in THREAD_POLICY}
    done = subprocess.run([sys.executable, "-c", COMMAND], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.stdout.strip() == "[('numpy', ('PASSIVE', '1')), ('torch', ('PASSIVE', '1'))]", done.stderr
