"""Where spans are sent, by options and by OpenTelemetry's variables."""

import logging
import sys

import pytest

from saccade_server.api.settings import ApiSettings
from saccade_server.api.spans.endpoint import SpansError, endpoint
from saccade_server.api.spans.spans import Spans
from saccade_server.serve_options.spans import SpanOptions

ALL, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("option", "environment", "url"),
    [
        (None, {}, None),
        ("http://c:4318", {}, "http://c:4318/v1/traces"),
        ("http://c:4318/", {}, "http://c:4318/v1/traces"),
        ("https://c/otlp/v1/traces", {}, "https://c/otlp/v1/traces"),
        ("http://c:4318", {ALL: "http://other"}, "http://c:4318/v1/traces"),
        (None, {ALL: "http://c:4318"}, "http://c:4318/v1/traces"),
        (None, {ALL: "http://c:4318/otlp/"}, "http://c:4318/otlp/v1/traces"),
        (None, {ALL: "http://no", TRACES: "http://c/x"}, "http://c/x"),
        (None, {ALL: ""}, None),
        (None, {ALL: "http://c", "OTEL_TRACES_EXPORTER": "none"}, None),
        ("http://c", {"OTEL_SDK_DISABLED": "true"}, None),
        ("http://c/x", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http://c/x"),
    ],
)
def test_the_url(option: str | None, environment: dict[str, str], url: str | None) -> None:
    found = endpoint(option, environment)
    assert (None if found is None else found[0]) == url


@pytest.mark.parametrize(
    ("option", "environment", "words"),
    [
        ("c:4318", {}, "is no URL"),
        ("grpc://c:4317", {}, "is no URL"),
        ("http://", {}, "is no URL"),
        ("http://c:99999", {}, "is no URL"),
        ("http://c/a b", {}, "is no URL"),
        ("http://c/\n", {}, "is no URL"),
        ("http://me:hidden@c/x", {}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http://c/x?key=hidden", {}, "OTEL_EXPORTER_OTLP_HEADERS"),
        (None, {ALL: "http://me:hidden@c"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http://c", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf only"),
        (None, {ALL: "http://c", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "protobuf only"),
    ],
)
def test_what_is_refused(option: str | None, environment: dict[str, str], words: str) -> None:
    with pytest.raises(SpansError, match=words) as caught:
        endpoint(option, environment)
    assert "hidden" not in str(caught.value)


def test_variables_are_read_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(SpansError, match="OTEL_"):
        SpanOptions("http://127.0.0.1:9").check()


def test_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SpansError, match=r"--otlp-traces-endpoint needs the extra otel"):
        SpanOptions("http://c").check()
    monkeypatch.setenv(ALL, "http://c")
    SpanOptions().check()
    assert SpanOptions().settings() == {"otlp_traces_endpoint": None}
    assert f"{ALL} needs the extra otel" in caplog.text


def test_nothing_is_imported_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sender", "request_spans"):
        monkeypatch.setitem(sys.modules, f"saccade_server.api.spans.{name}", None)
    Spans.of(ApiSettings("m"))
    with pytest.raises(ImportError):
        Spans.of(ApiSettings("m", otlp_traces_endpoint="http://c"))
