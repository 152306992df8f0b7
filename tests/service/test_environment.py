"""Variables with the service's prefix that are not the service's."""

import logging

import pytest

from moleflow.service.environment import report_foreign_variables
from moleflow.service.settings import Settings, load_settings

KUBERNETES = {
    "MOLEFLOW_PORT": "tcp://10.96.0.12:8000",
    "MOLEFLOW_PORT_8000_TCP": "tcp://10.96.0.12:8000",
    "MOLEFLOW_PORT_8000_TCP_ADDR": "10.96.0.12",
    "MOLEFLOW_PORT_8000_TCP_PORT": "8000",
    "MOLEFLOW_PORT_8000_TCP_PROTO": "tcp",
    "MOLEFLOW_SERVICE_HOST": "10.96.0.12",
    "MOLEFLOW_SERVICE_PORT": "8000",
    "MOLEFLOW_SERVICE_PORT_HTTP": "8000",
    "MOLEFLOW_GPU_PORT": "udp://10.96.0.13:9000",  # of another service, moleflow-gpu
    "MOLEFLOW_GPU_PORT_9000_UDP_ADDR": "10.96.0.13",
    "MOLEFLOW_GPU_SERVICE_HOST": "10.96.0.13",
}


def told(caplog: pytest.LogCaptureFixture, **environment: str) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        report_foreign_variables(environment, Settings.model_fields)
    return caplog.messages


def test_what_kubernetes_tells_of_a_service_is_no_setting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MOLEFLOW_QUEUE_SIZE", "7")
    settings = load_settings(checkpoint="a.safetensors")
    assert (settings.port, settings.queue_size) == (8000, 7)
    assert len(caplog.messages) == 1
    assert all(name in caplog.messages[0] for name in KUBERNETES)


def test_a_port_given_as_an_argument_wins_over_what_kubernetes_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLEFLOW_PORT", KUBERNETES["MOLEFLOW_PORT"])
    assert load_settings(checkpoint="a.safetensors", port=9001).port == 9001


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("MOLEFLOW_PROT", "MOLEFLOW_PORT"),
        ("MOLEFLOW_MAX_PIXEL", "MOLEFLOW_MAX_PIXELS"),
        ("MOLEFLOW_CHECKPIONT", "MOLEFLOW_CHECKPOINT"),
        ("moleflow_hots", "MOLEFLOW_HOST"),
        ("MOLEFLOW_MODEL", "MOLEFLOW_MODELS"),
        ("MOLEFLOW_UNKNOWN_LIMITS", "MOLEFLOW_UNKNOWN_LIMIT"),
    ],
)
def test_a_misspelt_variable_is_told_with_the_nearest_that_there_is(
    caplog: pytest.LogCaptureFixture, name: str, nearest: str
) -> None:
    (message,) = told(caplog, **{name: "1"})
    assert name in message
    assert f"is {nearest} meant?" in message


def test_a_variable_like_no_other_is_told_too(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, MOLEFLOW_ZZZ="1") == ["Nothing reads the environment variable MOLEFLOW_ZZZ."]


def test_variables_that_something_reads_and_foreign_ones_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    known = {f"MOLEFLOW_{name.upper()}": "1" for name in Settings.model_fields}
    assert told(caplog, **known, MOLEFLOW_THREADS="2", MOLEFLOW_MODELS="/models", PATH="/bin", MY_MOLEFLOW_X="1") == []
