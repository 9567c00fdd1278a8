"""Scheduling, paging and running. It knows plans, never the name of a method."""
