"""Requests that nobody would write: from the API's own document, and from broken files."""
