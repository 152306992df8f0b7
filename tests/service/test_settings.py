"""Settings from arguments and the environment, and errors for invalid ones."""

from pathlib import Path

import pytest

from moleflow.model.errors import ConfigurationError
from moleflow.service.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MOLEFLOW_{name.upper()}", raising=False)


def test_everything_but_the_checkpoint_has_a_default() -> None:
    settings = load_settings(checkpoint="a.safetensors")
    assert settings.checkpoint == Path("a.safetensors")
    assert (settings.host, settings.port, settings.device, settings.precision) == ("127.0.0.1", 8000, "auto", "auto")


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("checkpoint", "b.safetensors", Path("b.safetensors")),
        ("device", "cuda:1", "cuda:1"),
        ("precision", "bf16", "bf16"),
        ("plugin", "mine", "mine"),
        ("host", "0.0.0.0", "0.0.0.0"),
        ("port", "9000", 9000),
        ("max_upload_bytes", "2MiB", 2 * 1024**2),
        ("max_pixels", "1000", 1000),
        ("max_batch_size", "3", 3),
        ("max_batch_wait_ms", "0", 0.0),
        ("queue_size", "5", 5),
        ("cpu_workers", "2", 2),
        ("log_level", "warning", "warning"),
        ("false_alarm_rate", "0.002", 0.002),
        ("unknown_limit", "0", 0.0),
    ],
)
def test_the_environment_provides_settings(
    name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOLEFLOW_CHECKPOINT", "a.safetensors")
    monkeypatch.setenv(f"MOLEFLOW_{name.upper()}", text)
    assert getattr(load_settings(), name) == value


def test_an_argument_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLEFLOW_PORT", "9000")
    assert load_settings(checkpoint="a.safetensors", port=9001).port == 9001


def test_a_missing_argument_does_not_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLEFLOW_PORT", "9000")
    assert load_settings(checkpoint="a.safetensors", port=None).port == 9000


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLEFLOW_PLUGIN", "")
    assert load_settings(checkpoint="a.safetensors").plugin is None


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("port", "99999", "65535"),
        ("precision", "fp8", "'bf16'"),
        ("device", "gpu", "cuda:N"),
        ("max_batch_size", "0", "greater than or equal to 1"),
        ("queue_size", "many", "integer"),
        ("max_upload_bytes", "0", "greater than 0"),
        ("log_level", "loud", "'warning'"),
        ("false_alarm_rate", "0", "greater than 0"),
        ("false_alarm_rate", "1", "less than 1"),
        ("unknown_limit", "-1", "greater than or equal to 0"),
    ],
)
def test_an_invalid_value_is_rejected_with_its_name_and_what_is_valid(
    name: str, value: str, valid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MOLEFLOW_{name.upper()}", value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(checkpoint="a.safetensors")
    message = str(caught.value)
    assert f"MOLEFLOW_{name.upper()}" in message
    assert value in message
    assert valid in message


def test_all_invalid_values_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"port .* queue_size "):
        load_settings(checkpoint="a.safetensors", port=-1, queue_size=0)


def test_a_misspelt_variable_is_reported_beside_the_error_that_it_causes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MOLEFLOW_CHECKPONT", "a.safetensors")
    with pytest.raises(ConfigurationError):
        load_settings()
    assert "Did you mean MOLEFLOW_CHECKPOINT?" in caplog.text


def test_a_missing_checkpoint_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="set MOLEFLOW_CHECKPOINT"):
        load_settings()


def test_an_unknown_argument_is_rejected_with_the_valid_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"no setting 'prot'.*port"):
        load_settings(checkpoint="a.safetensors", prot=1)
