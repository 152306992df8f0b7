"""What a worker takes of its node; without Ray."""

import pytest

from moleflow.cluster.connection import Share, connected
from moleflow.model.errors import ConfigurationError


@pytest.mark.parametrize(
    ("share", "fits"),
    [(Share(1, 0), 8), (Share(3, 0), 2), (Share(0.5, 0.25), 8), (Share(4, 1), 2), (Share(16, 0), 0), (Share(0, 1), 2)],
)
def test_workers_fit_beside_each_other_by_what_is_scarcest(share: Share, fits: int) -> None:
    assert share.slots({"CPU": 8, "GPU": 2, "memory": 1e9}) == fits


def test_threads_are_the_whole_processors_unless_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOLEFLOW_THREADS", raising=False)
    assert [Share(cpus).threads for cpus in (0.5, 1, 3.9)] == [1, 1, 3]
    monkeypatch.setenv("MOLEFLOW_THREADS", "2")
    assert Share(8).threads == 2


def test_a_worker_computes_on_a_gpu_exactly_if_it_has_a_share_of_one() -> None:
    assert [Share(1, gpus).device("auto") for gpus in (0, 0.25)] == ["cpu", "cuda"]
    assert Share(1, 0).device("cuda:1") == "cuda:1"


def test_the_address_of_a_client_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="on a node of the cluster with `--ray auto`"), connected("ray://h:1"):
        pass
