"""A server on a socket over a scripted engine."""
