"""Ids of requests and traces from headers."""

import pytest

from moleflow.service.exchange import Exchange, trace_id_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("given", ["a", "line-1/part:42", "0d5c7c4e-3f7b", "x" * 128, "a=b@c+d_e."])
def test_an_id_that_can_be_logged_is_taken(given: str) -> None:
    exchange = Exchange.of([given])
    assert exchange.request_id == given
    assert exchange.answer_id() != given  # a client may repeat its own


@pytest.mark.parametrize(
    "given", [[], [""], ["x" * 129], ["a b"], ["a\tb"], ['a"'], ["é"], ["{}"], ["a", "b"], ["a\n"]]
)
def test_without_one_there_is_a_new_id(given: list[str]) -> None:
    first, second = Exchange.of(given), Exchange.of(given)
    assert first.request_id != second.request_id
    assert len(first.request_id) == 32
    assert first.answer_id() == first.request_id


@pytest.mark.parametrize(
    "given", [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", f"cc-{TRACE}-{PARENT}-01-more"]
)
def test_the_trace_of_a_valid_header_is_found(given: str) -> None:
    assert trace_id_of([given]) == TRACE


@pytest.mark.parametrize(
    "given",
    [
        [],
        [""],
        [f"ff-{TRACE}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01-more"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE.upper()}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}"],
        [f"00-{TRACE}-{PARENT}-01"] * 2,
    ],
)
def test_an_invalid_header_names_no_trace(given: list[str]) -> None:
    assert trace_id_of(given) is None
