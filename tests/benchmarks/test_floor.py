"""The floor's gates are medians of ratios within a round, and parts of a prediction are counted once."""

import floor


def test_a_gate_is_the_median_of_the_ratios_within_each_round() -> None:
    times = {
        "backbone": [1.0, 10.0, 2.0],
        "products": [1.0, 10.0, 2.0],
        "prediction": [2.0, 30.0, 5.0],
        "mixed": [3.0, 30.0, 5.0],
    }
    found = floor.gates({"ms_per_image": {"bf16": {"8": times}}})
    assert [value for _, value, _ in found] == [1.25, 1.0]
    assert [most for _, _, most in found] == [1.25, 1.2]


def test_subjects_are_timed_in_turn_and_the_first_call_of_each_does_not_count() -> None:
    calls: list[str] = []
    subjects = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = floor.time_in_turn(subjects, 3, 1)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
