"""The gates on the lower bound are medians of ratios within a round, and subjects are timed in turn."""

from benchmarks.speed import lower_bound


def test_a_gate_is_the_median_of_the_ratios_within_each_round() -> None:
    times = {
        "backbone": [1.0, 10.0, 2.0],
        "products": [1.0, 10.0, 2.0],
        "prediction": [2.0, 30.0, 5.0],
        "mixed": [3.0, 30.0, 5.0],
    }
    found = lower_bound.gates({"ms_per_image": {"bf16": {"8": times}}})
    assert [(gate.value, gate.limit, gate.passed) for gate in found] == [
        ("1.25", "≤ 1.25", True),
        ("1.00", "≤ 1.20", True),
    ]


def test_subjects_are_timed_in_turn_and_the_first_call_of_each_does_not_count() -> None:
    calls: list[str] = []
    subjects = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = lower_bound.time_in_turn(subjects, 3, 1)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
