"""Python client of the Saccade inference server."""

__version__ = "0.1.0"
