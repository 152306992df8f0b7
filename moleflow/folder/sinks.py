"""Where rows are sent beside the output file: a webhook, or an MQTT broker. Both get the JSON of a row."""

import urllib.error
import urllib.request
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from moleflow.model.errors import ConfigurationError
from moleflow.retrying import retry_after_seconds

__all__ = ["Mqtt", "Sink", "SinkError", "Webhook"]

_TIMEOUT_SECONDS = 10.0
"""For one attempt."""

_MQTT_PORT, _MQTTS_PORT = 1883, 8883
"""Registered ports of MQTT, and of MQTT over TLS."""

_AT_LEAST_ONCE = 1
"""Quality of service: the broker acknowledges every message."""


class SinkError(Exception):
    """A row could not be sent. ``is_final`` if sending it again is no use; else not before ``retry_after_seconds``."""

    def __init__(self, message: str, *, is_final: bool = False, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.is_final, self.retry_after_seconds = is_final, retry_after_seconds


class Sink(Protocol):
    """A receiver of rows, used by one thread. Its ``name`` is part of a file name."""

    name: str

    def send(self, row: bytes) -> None:
        """Send the JSON of one row and wait until it is received. Raises ``SinkError``."""

    def close(self) -> None:
        """Release the connection."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without the row."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Webhook:
    """Sends each row as the body of a POST request. Any 2xx response means that it was received."""

    name = "webhook"

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"--webhook {url!r} should be an address that begins with http:// or https://.")
        self._url = url
        self._opener = urllib.request.build_opener(_NoRedirects)

    def send(self, row: bytes) -> None:
        request = urllib.request.Request(self._url, row, {"Content-Type": "application/json"}, method="POST")
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
                response.read()
        except urllib.error.HTTPError as error:
            with error:
                wait = retry_after_seconds(error.headers.get("Retry-After"))
            is_final = error.code < 500 and error.code not in (408, 429)
            raise SinkError(f"status {error.code}", is_final=is_final, retry_after_seconds=wait) from error
        except OSError as error:
            raise SinkError(str(getattr(error, "reason", error))) from error
        except ValueError as error:  # an address that http.client refuses
            raise SinkError(str(error), is_final=True) from error

    def close(self) -> None:
        """There is no connection between two rows."""


class Mqtt:
    """Publishes each row on one topic, at least once. Reconnects by itself."""

    name = "mqtt"

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        topic = unquote(parts.path.removeprefix("/"))
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or not topic or set("#+") & set(topic):
            raise ConfigurationError(f"--mqtt {url!r} should be mqtt://HOST/TOPIC or mqtts://HOST:PORT/TOPIC.")
        try:
            from paho.mqtt import client as mqtt
        except ImportError as error:
            raise ConfigurationError(
                "MQTT needs paho-mqtt, which is not installed: pip install 'moleflow[mqtt]'."
            ) from error
        self._topic = topic
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        if parts.scheme == "mqtts":
            self._client.tls_set()
        if parts.username:
            self._client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        port = parts.port or (_MQTTS_PORT if parts.scheme == "mqtts" else _MQTT_PORT)
        try:
            self._client.connect(parts.hostname, port)
        except OSError as error:
            raise ConfigurationError(f"the MQTT broker {parts.hostname}:{port} cannot be reached ({error}).") from error
        self._client.loop_start()

    def send(self, row: bytes) -> None:
        try:
            published = self._client.publish(self._topic, row, _AT_LEAST_ONCE)
            published.wait_for_publish(_TIMEOUT_SECONDS)
        except (RuntimeError, ValueError, OSError) as error:
            raise SinkError(str(error)) from error
        if not published.is_published():
            raise SinkError(f"the broker has not acknowledged it within {_TIMEOUT_SECONDS:g} s")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
