"""The inference server: models, engine and HTTP API."""

__version__ = "0.1.0"
