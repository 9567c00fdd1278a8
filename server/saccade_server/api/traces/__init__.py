"""Traces in answers: as JSON, or as files behind links."""
