"""Where spans go: an option of ours, or the variables that OpenTelemetry has for it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

OPTION = "--otlp-traces-endpoint"
OF_TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
OF_ALL = "OTEL_EXPORTER_OTLP_ENDPOINT"
PATH = "/v1/traces"
PROTOCOL = "http/protobuf"

NEEDS_EXTRA = "{} needs the extra otel: pip install 'saccade-server[otel]'"


class SpansError(ValueError):
    """Spans cannot be sent as was asked; the message says why and what helps."""


def endpoint(option: str | None, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The URL that spans are posted to, and what said so; None: there are to be no spans.

    Raises:
        SpansError: the URL is none, or what is said contradicts it.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    found = _named(option, environment)
    if found is None:
        return None
    url, source = found
    if option is None and environment.get("OTEL_TRACES_EXPORTER", "otlp").strip() == "none":
        return None
    _check(url, source)
    name = next((each for each in PROTOCOLS if environment.get(each)), None)
    if name is not None and environment[name].strip() != PROTOCOL:
        message = f"{name} is {environment[name]!r}: spans are sent by {PROTOCOL} only, mostly to "
        raise SpansError(f"{message}port 4318 of a collector")
    return url, source


PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def _named(option: str | None, environment: Mapping[str, str]) -> tuple[str, str] | None:
    if option:
        bare = urlsplit(option).path in ("", "/") if _splits(option) else False
        return (option.rstrip("/") + PATH if bare else option), OPTION
    if environment.get(OF_TRACES):
        return environment[OF_TRACES], OF_TRACES
    if environment.get(OF_ALL):
        return environment[OF_ALL].rstrip("/") + PATH, OF_ALL
    return None


def _check(url: str, source: str) -> None:
    """Refuse what is no URL, and secrets in it: what cannot be reached is named in the log."""
    if not _splits(url) or not url.isascii() or not url.isprintable() or " " in url:
        raise SpansError(f"{source} is no URL: give one such as http://localhost:4318{PATH}")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpansError(f"{source} is no URL: give one such as http://localhost:4318{PATH}")
    if parts.username is not None or parts.query or parts.fragment:
        message = f"{source} holds more than a host and a path: what the collector wants to know "
        raise SpansError(f"{message}of who sends belongs into OTEL_EXPORTER_OTLP_HEADERS")


def _splits(url: str) -> bool:
    try:
        return bool(urlsplit(url).netloc) and (urlsplit(url).port or 1) > 0
    except ValueError:
        return False
