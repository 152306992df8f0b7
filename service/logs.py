"""The log of the service's process, as text or as one JSON object a line."""

import json
import logging
import logging.config
import math
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from moleflow.service.exchange import current

__all__ = ["JsonFormatter", "LogFormat", "LogLevel", "access_logger", "configure_logs"]

LogFormat = Literal["text", "json"]
LogLevel = Literal["critical", "error", "warning", "info", "debug"]

access_logger = logging.getLogger("moleflow.access")
"""One line per request; its records carry ``fields``."""

_logger = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """Makes one line of ASCII of each record: time, level, logger, message, ids of its request, and its ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        if not fields and (exchange := current.get()) is not None:
            fields = {"request_id": exchange.request_id, "trace_id": exchange.trace_id}
        entry |= {name: None if _is_no_number(value) else value for name, value in fields.items()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        return json.dumps(entry, default=str)


def configure_logs(log_format: LogFormat, level: LogLevel) -> None:
    """Send all log records of this process to one place: text to standard error, JSON to standard output.

    With JSON, warnings and exceptions that nothing catches are records too.
    """
    least = getattr(logging, level.upper())
    is_json = log_format == "json"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "text": {"()": "uvicorn.logging.DefaultFormatter", "fmt": "%(levelprefix)s %(message)s"},
                "json": {"()": JsonFormatter},
            },
            "handlers": {
                "log": {
                    "class": "logging.StreamHandler",
                    "formatter": log_format,
                    "level": least,
                    "stream": sys.stdout if is_json else sys.stderr,
                }
            },
            "root": {"handlers": ["log"], "level": "WARNING"},
            "loggers": {name: {"level": min(least, logging.WARNING)} for name in ("moleflow", "uvicorn")},
        }
    )
    logging.captureWarnings(is_json)
    if is_json:
        sys.excepthook = lambda kind, error, trace: _logger.critical("Uncaught", exc_info=(kind, error, trace))
        threading.excepthook = lambda args: _logger.critical(
            "Uncaught in thread %s",
            args.thread.name if args.thread else "",
            exc_info=(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback),
        )


def _is_no_number(value: object) -> bool:
    """Whether JSON cannot represent a value because it is not finite."""
    return isinstance(value, float) and not math.isfinite(value)
