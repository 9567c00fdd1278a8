"""Attention interventions as data: methods compile into plans."""
