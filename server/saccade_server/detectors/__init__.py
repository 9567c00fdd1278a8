"""Detectors: what the arrays of a trace say about an answer. Pure functions; no torch, no HTTP."""
