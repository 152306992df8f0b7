"""Settings of the service, from ``MOLEFLOW_*`` environment variables and the command line."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, DirectoryPath, Field, FilePath, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT, Engine, Precision
from moleflow.model.errors import ConfigurationError
from moleflow.model.images.decode import MAX_PIXELS
from moleflow.model.runtime.threads import available_processors, helper_threads
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE
from moleflow.service.environment import ENVIRONMENT_PREFIX, warn_about_unread_variables, without_service_links
from moleflow.service.logs import LogFormat, LogLevel
from moleflow.service.names import HostList, OriginList, RootPath

__all__ = ["ENVIRONMENT_PREFIX", "Settings", "load_settings"]


class Settings(BaseSettings):
    """Settings of the service. An argument overrides the environment variable, which overrides the default.

    ``load_settings`` turns invalid values into ``ConfigurationError``.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=True
    )

    checkpoint: Path = Field(description="the checkpoint file, or the exported folder, to serve")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="device to run the model on: auto, cpu, cuda, cuda:N"
    )
    precision: Precision = Field("auto", description="fp32, bf16, fp16 or auto")
    engine: Engine = Field(
        "auto",
        description="what computes: torch, openvino, or auto: features by OpenVINO if installed, on a CPU in fp32",
    )
    plugin: str | None = Field(None, description="module to import first, which registers more backbones with timm")
    false_alarm_rate: float = Field(
        DEFAULT_FALSE_ALARM_RATE, gt=0, lt=1, description="fraction of good images that may be called anomalous"
    )
    unknown_limit: float = Field(
        DEFAULT_UNKNOWN_LIMIT,
        ge=0,
        allow_inf_nan=False,
        description="novelty score above which the product counts as unknown; 0 accepts every image",
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 lets the system choose")
    admin_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="second port, on which alone administration and /metrics are answered; by default on the first",
    )
    root_path: RootPath = Field(
        "", description="path prefix under which a proxy serves the application, such as /inspection; empty for none"
    )
    allowed_hosts: HostList = Field(
        (),
        description="comma-separated host names and addresses that clients may use, such as "
        "inspection.factory,*.local; * for any. By default localhost, 127.0.0.1, ::1 and names without a dot if host "
        "is a loopback address, else any",
    )
    cors_origins: OriginList = Field(
        (),
        description="comma-separated origins of other web pages that may use the service, such as "
        "https://mes.factory; * for any",
    )
    api_keys: FilePath | None = Field(
        None, description="file of API keys, a line NAME SCOPE KEY each; without it every client may use the service"
    )
    samples: DirectoryPath | None = Field(
        None, description="folder of images that everybody may see and that the page offers to try; none by default"
    )
    max_upload_bytes: ByteSize = Field(
        ByteSize(32 * 1024**2), gt=0, description="maximum upload size, in bytes or as 32MiB; more gets status 413"
    )
    max_request_images: int = Field(
        64, ge=1, le=10_000, description="maximum number of images in one request to /predict/batch"
    )
    max_request_bytes: ByteSize = Field(
        ByteSize(128 * 1024**2),
        gt=0,
        description="maximum size of all images in one request to /predict/batch together; more gets status 413",
    )
    max_pixels: int = Field(
        MAX_PIXELS, gt=0, description="maximum image size in pixels; decoding takes up to 13 bytes per pixel"
    )
    max_batch_size: int = Field(8, ge=1, le=1024, description="maximum number of images in a batch")
    max_batch_wait_ms: float = Field(
        5.0, ge=0, le=10_000, description="maximum time that an image waits for others that are still being decoded"
    )
    batch_timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="timeout for one batch; waiting requests then get status 503"
    )
    load_timeout_seconds: float = Field(
        600.0, gt=0, le=86_400, description="timeout for loading the model; the service must then be restarted"
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="number of processes that share the port, each with a model of its own: for one GPU and many "
        "processors. Limits of requests, memory and connections are for each process; cpu_workers is divided",
    )
    reload_seconds: float = Field(
        1.0,
        ge=0,
        le=3600,
        description="interval at which the checkpoint file is looked at; a changed one is loaded and served. 0 for "
        "never: only SIGHUP and POST /admin/reload reload it",
    )
    admin: Literal["local", "any", "none"] = Field(
        "local",
        description="clients that may use /admin and change products: those on this machine (local, not through a "
        "proxy), any, or none",
    )
    audit_log: Path | None = Field(
        None,
        description="file to which a JSON line is appended for every change of products, of what is served and of what "
        "is taught; the log has it in any case",
    )
    feedback: Path | None = Field(
        None, description="folder that keeps images for which feedback is given; without it none is accepted"
    )
    feedback_bytes: ByteSize = Field(ByteSize(1024**3), gt=0, description="maximum size of that folder")
    feedback_memory: ByteSize = Field(
        ByteSize(256 * 1024**2), gt=0, description="memory for images of recent answers, for which feedback may come"
    )
    teaching: Path | None = Field(
        None, description="folder for teaching: good images of products, and jobs that learn them; off without it"
    )
    teaching_bytes: ByteSize = Field(ByteSize(4 * 1024**3), gt=0, description="maximum size of the images in it")
    teaching_threads: int = Field(
        default_factory=lambda: max(1, available_processors() // 2),
        ge=1,
        le=1024,
        description="threads of a job that learns a product; it yields the processors to predictions all the same",
    )
    client_requests_per_second: float = Field(
        0.0,
        ge=0,
        le=100_000,
        allow_inf_nan=False,
        description="prediction requests per second that one client may send, by API key or else by address; more get "
        "status 429. 0 for no limit",
    )
    client_requests_in_progress: int = Field(
        0,
        ge=0,
        le=100_000,
        description="prediction requests that one client may have in progress; more get status 429. 0 for no limit",
    )
    queue_size: int = Field(
        64, ge=1, le=100_000, description="maximum number of accepted, unanswered requests; more get status 429"
    )
    cpu_workers: int = Field(
        default_factory=helper_threads,
        ge=1,
        le=256,
        description="number of decoder processes, and of encoder threads",
    )
    decode_timeout_seconds: float = Field(
        1.8, gt=0, le=600, description="CPU time limit for decoding one image; an image that takes more gets status 413"
    )
    request_timeout_seconds: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="time within which a prediction must be ready, upload included; later ones get status 504. The "
        "header X-Request-Timeout-Ms of a request takes its place. 0 for no limit",
    )
    upload_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="timeout for receiving an upload; slower ones get status 408"
    )
    upload_memory: ByteSize = Field(
        ByteSize(512 * 1024**2),
        gt=0,
        description="memory budget for uploads that are being processed; requests beyond it get status 429",
    )
    answer_memory: ByteSize = Field(
        ByteSize(512 * 1024**2),
        gt=0,
        description="memory budget for large responses that are being sent; responses beyond it are delayed",
    )
    send_timeout_seconds: float = Field(
        20.0, gt=0, le=3600, description="timeout for a client that reads nothing of its response; it is disconnected"
    )
    header_timeout_seconds: float = Field(
        20.0, gt=0, le=3600, description="timeout for receiving a request head; slower clients are disconnected"
    )
    max_connections: int | None = Field(
        None,
        ge=16,
        le=100_000,
        description="maximum number of open connections; beyond it, the longest idle one is closed. By default as many "
        "as the limit of open files allows, up to 1000",
    )
    lame_duck_seconds: float = Field(
        5.0,
        ge=0,
        le=600,
        description="time after SIGTERM during which requests are still accepted, while /health/ready is already 503",
    )
    shutdown_timeout_seconds: int = Field(
        30, ge=1, le=3600, description="timeout for completing accepted requests when the service stops"
    )
    log_level: LogLevel = Field(
        "info", description="critical, error, warning, info (includes a line per request) or debug"
    )

    log_format: LogFormat = Field(
        "text", description="text, on standard error, or json: one JSON object per line, on standard output"
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
        """Arguments first, then environment variables, without those that Kubernetes sets."""
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = without_service_links(env_settings.env_vars)
        return init_settings, env_settings


def load_settings(**arguments: Any) -> Settings:
    """Settings from the environment, overridden by arguments that are not ``None``.

    Raises ``ConfigurationError``, which names every invalid
    setting, its value and what is valid.
    """
    try:
        return Settings(**{key: value for key, value in arguments.items() if value is not None})
    except ValidationError as error:
        # A misspelt variable may be the reason; ``moleflow.service.server`` reports them once the log is set up.
        warn_about_unread_variables(os.environ, Settings.model_fields)
        raise ConfigurationError(" ".join(_explain(problem) for problem in error.errors())) from error


def _explain(problem: Any) -> str:
    key = str(problem["loc"][0]) if problem["loc"] else "settings"
    variable = ENVIRONMENT_PREFIX + key.upper()
    field = Settings.model_fields.get(key)
    if field is None:
        return f"There is no setting {key!r}; the settings are {', '.join(Settings.model_fields)}."
    if problem["type"] == "missing":
        return f"{key} is not set: give {field.description} as an argument, or set {variable}."
    reason = problem["msg"].rstrip(".").removeprefix("Input ").removeprefix("Path ").removeprefix("Value error, ")
    return f"{key} ({variable}) cannot be {problem['input']!r}: it {reason}. Meaning: {field.description}."
