"""What a deployment may choose, from ``MOLEFLOW_*`` environment variables and from the command line alike."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.errors import ConfigurationError
from moleflow.model.images.decode import MAX_PIXELS
from moleflow.model.runtime.threads import helper_threads
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE
from moleflow.service.environment import ENVIRONMENT_PREFIX, own_variables, report_foreign_variables
from moleflow.service.names import HostList, OriginList, RootPath

__all__ = ["ENVIRONMENT_PREFIX", "Settings", "load_settings"]


class Settings(BaseSettings):
    """Settings of the service. An argument wins over the environment variable, which wins over the default.

    Use ``load_settings`` where a bad value should become a ``ConfigurationError``.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=True
    )

    checkpoint: Path = Field(description="the checkpoint file to serve")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="where the model runs: auto, cpu, cuda, cuda:N"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="fp32, bf16, fp16 or auto")
    plugin: str | None = Field(None, description="module to import first; it registers further backbones with timm")
    false_alarm_rate: float = Field(
        DEFAULT_FALSE_ALARM_RATE, gt=0, lt=1, description="share of good images that may be called anomalous"
    )
    unknown_limit: float = Field(
        DEFAULT_UNKNOWN_LIMIT, ge=0, allow_inf_nan=False,
        description="novelty score beyond which an image is of an unknown product; 0 refuses nothing",
    )  # fmt: skip
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 lets the system choose")
    root_path: RootPath = Field(
        "", description="path below which a proxy offers the service, such as /inspection; empty for none"
    )
    allowed_hosts: HostList = Field(
        (), description="names and addresses by which the service may be called, with commas between them, such as "
        "inspection.factory,*.local; * for any. Unless set, localhost, 127.0.0.1, ::1 and names without a dot where "
        "host is a loopback address, and any name elsewhere",
    )  # fmt: skip
    cors_origins: OriginList = Field(
        (), description="origins of web pages that may use the service beside its own, with commas between them, such "
        "as https://mes.factory; * for any",
    )  # fmt: skip
    max_upload_bytes: ByteSize = Field(
        ByteSize(32 * 1024**2), gt=0, description="largest upload, in bytes or as 32MiB; larger ones get status 413"
    )
    max_pixels: int = Field(
        MAX_PIXELS, gt=0, description="largest image, in pixels; decoding takes up to 13 bytes a pixel"
    )
    max_batch_size: int = Field(8, ge=1, le=1024, description="most images in one pass through the model")
    max_batch_wait_ms: float = Field(
        5.0, ge=0, le=10_000, description="longest time that an image waits for others that are on their way"
    )
    batch_timeout_seconds: float = Field(
        60.0, gt=0, le=3600,
        description="time in which the model must have judged a batch; then whoever waits gets status 503",
    )  # fmt: skip
    load_timeout_seconds: float = Field(
        600.0, gt=0, le=86_400, description="time in which the model must be loaded; then only a restart helps"
    )
    queue_size: int = Field(
        64, ge=1, le=100_000, description="most requests accepted and not yet answered; beyond it they get status 429"
    )
    cpu_workers: int = Field(
        default_factory=helper_threads,
        ge=1,
        le=256,
        description="processes that decode, and as many threads that encode",
    )
    decode_timeout_seconds: float = Field(
        2.0, gt=0, le=600, description="processor time that decoding one image may take; beyond it, it gets status 413"
    )
    upload_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="time in which an upload must have arrived; slower ones get status 408"
    )
    upload_memory: ByteSize = Field(
        ByteSize(512 * 1024**2), gt=0,
        description="most bytes of uploads held at once, until their answers are made; beyond it they get status 429",
    )  # fmt: skip
    answer_memory: ByteSize = Field(
        ByteSize(512 * 1024**2), gt=0,
        description="most bytes of large answers held at once, until they are sent; beyond it the next are made later",
    )  # fmt: skip
    send_timeout_seconds: float = Field(
        20.0, gt=0, le=3600, description="longest time in which a client may take nothing of its answer; then it is cut"
    )
    header_timeout_seconds: float = Field(
        20.0, gt=0, le=3600, description="time in which a request's head must have arrived; slower connections are cut"
    )
    max_connections: int | None = Field(
        None, ge=16, le=100_000,
        description="most open connections; the longest idle makes room for a new one. Unless set, as many as the "
        "limit of open files leaves room for, and at most 1000",
    )  # fmt: skip
    lame_duck_seconds: float = Field(
        5.0, ge=0, le=600,
        description="time after SIGTERM in which requests are still taken while /health/ready is 503 already",
    )  # fmt: skip
    shutdown_timeout_seconds: int = Field(
        30, ge=1, le=3600, description="time given to accepted requests when the service is told to stop"
    )
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        "info", description="critical, error, warning, info (one line per request, too) or debug"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, and then those variables of the environment that are the service's."""
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = own_variables(env_settings.env_vars)
        return init_settings, env_settings


def load_settings(**arguments: Any) -> Settings:
    """Settings from the environment, with the given arguments on top; ``None`` means that an argument was not given.

    Variables with the prefix that nothing reads are told in the log.
    Raises ``ConfigurationError``, naming every key that is wrong, its value, and what would be valid.
    """
    report_foreign_variables(os.environ, Settings.model_fields)
    try:
        return Settings(**{key: value for key, value in arguments.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError(" ".join(_explain(problem) for problem in error.errors())) from error


def _explain(problem: Any) -> str:
    """One sentence or two about one problem that pydantic found."""
    key = str(problem["loc"][0]) if problem["loc"] else "settings"
    variable = ENVIRONMENT_PREFIX + key.upper()
    field = Settings.model_fields.get(key)
    if field is None:
        return f"There is no setting {key!r}; there are: {', '.join(Settings.model_fields)}."
    if problem["type"] == "missing":
        return f"{key} is not set: give {field.description} as an argument, or set {variable}."
    reason = problem["msg"].rstrip(".").removeprefix("Input ").removeprefix("Value error, ")
    return f"{key} ({variable}) cannot be {problem['input']!r}: it {reason}. It means: {field.description}."
