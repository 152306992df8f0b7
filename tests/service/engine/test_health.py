"""What is known of the model and its thread, apart from any service."""

from moleflow.model.errors import ExpertError
from moleflow.service.engine.health import HOPELESS, LOOKS, Health


def health() -> Health:
    made = Health(batch_timeout_seconds=10, load_timeout_seconds=10)
    made.loaded()
    return made


def look(watched: Health, times: int) -> None:
    for _ in range(times):
        watched.look()


def test_a_batch_is_late_when_it_has_been_looked_at_often_enough() -> None:
    watched = health()
    with watched.working():
        look(watched, LOOKS - 1)
        assert watched.why_not_ready() is None
        look(watched, 1)
        assert "10 s" in (watched.why_not_ready() or "")
        assert watched.why_not_live() is None
        look(watched, LOOKS * (HOPELESS - 1))
        assert "20 s" in (watched.why_not_live() or "")
    assert watched.why_not_ready() is None
    assert watched.why_not_live() is None


def test_the_looks_at_one_batch_do_not_count_for_the_next() -> None:
    watched = health()
    for _ in range(3):
        with watched.working():
            look(watched, LOOKS - 1)
            assert watched.why_not_ready() is None


def test_a_thread_that_ended_is_beyond_repair() -> None:
    watched = health()
    watched.thread_ended()
    assert "thread ended" in (watched.why_not_live() or "")


def test_the_first_reason_stays() -> None:
    watched = health()
    watched.failed(RuntimeError("CUDA error: device-side assert triggered"))
    watched.thread_ended()
    assert "device-side assert" in (watched.why_not_live() or "")


def test_damaged_products_are_told_in_the_order_of_their_names() -> None:
    watched = health()
    watched.note([ExpertError("b", "cut"), ExpertError("a", "cut")])
    watched.note([])
    assert watched.damaged == ("a", "b")
    assert watched.why_not_ready() is None
