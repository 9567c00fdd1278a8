"""Spans of requests, sent to an OpenTelemetry collector; the extra otel is imported only here."""
