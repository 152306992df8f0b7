"""The health of the model and its thread, without a running service."""

from moleflow.model.errors import ExpertError
from moleflow.service.engine.health import CHECKS_PER_TIMEOUT, HANG_FACTOR, Health


def health() -> Health:
    watched = Health(batch_timeout_seconds=10, load_timeout_seconds=10)
    watched.loaded()
    return watched


def check(watched: Health, times: int) -> None:
    for _ in range(times):
        watched.check()


def test_a_batch_times_out_after_enough_checks() -> None:
    watched = health()
    with watched.working():
        check(watched, CHECKS_PER_TIMEOUT - 1)
        assert watched.why_not_ready() is None
        check(watched, 1)
        assert "10 s" in (watched.why_not_ready() or "")
        assert watched.why_not_live() is None
        check(watched, CHECKS_PER_TIMEOUT * (HANG_FACTOR - 1))
        assert "20 s" in (watched.why_not_live() or "")
    assert watched.why_not_ready() is None
    assert watched.why_not_live() is None


def test_checks_on_one_batch_do_not_count_for_the_next() -> None:
    watched = health()
    for _ in range(3):
        with watched.working():
            check(watched, CHECKS_PER_TIMEOUT - 1)
            assert watched.why_not_ready() is None


def test_a_dead_inference_thread_makes_the_service_not_live() -> None:
    watched = health()
    watched.thread_ended()
    assert "thread has died" in (watched.why_not_live() or "")


def test_the_first_reason_is_kept() -> None:
    watched = health()
    watched.record_failure(RuntimeError("CUDA error: device-side assert triggered"))
    watched.thread_ended()
    assert "device-side assert" in (watched.why_not_live() or "")


def test_damaged_products_are_listed_by_name() -> None:
    watched = health()
    watched.record([ExpertError("b", "truncated"), ExpertError("a", "truncated")])
    watched.record([])
    assert watched.damaged == ("a", "b")
    assert watched.why_not_ready() is None
