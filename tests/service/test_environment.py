"""Variables with the prefix that are not settings."""

import logging

import pytest

from moleflow.service.environment import warn_about_unread_variables
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
    "MOLEFLOW_GPU_PORT": "udp://10.96.0.13:9000",  # another service, moleflow-gpu
    "MOLEFLOW_GPU_PORT_9000_UDP_ADDR": "10.96.0.13",
    "MOLEFLOW_GPU_SERVICE_HOST": "10.96.0.13",
}


def warnings(caplog: pytest.LogCaptureFixture, **environment: str) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_about_unread_variables(environment, Settings.model_fields)
    return caplog.messages


def test_variables_set_by_kubernetes_are_not_settings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MOLEFLOW_QUEUE_SIZE", "7")
    settings = load_settings(checkpoint="a.safetensors")
    assert (settings.port, settings.queue_size) == (8000, 7)
    (message,) = warnings(caplog, **KUBERNETES)
    assert all(name in message for name in KUBERNETES)


def test_a_port_argument_overrides_a_variable_set_by_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_misspelt_variable_is_reported_with_the_closest_name(
    caplog: pytest.LogCaptureFixture, name: str, nearest: str
) -> None:
    (message,) = warnings(caplog, **{name: "1"})
    assert name in message
    assert f"Did you mean {nearest}?" in message


def test_an_unknown_variable_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog, MOLEFLOW_ZZZ="1") == ["Unknown environment variable MOLEFLOW_ZZZ is ignored."]


def test_known_variables_and_those_of_other_programs_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    known = {f"MOLEFLOW_{name.upper()}": "1" for name in Settings.model_fields}
    assert (
        warnings(caplog, **known, MOLEFLOW_THREADS="2", MOLEFLOW_MODELS="/models", PATH="/bin", MY_MOLEFLOW_X="1") == []
    )
