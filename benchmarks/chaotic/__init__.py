"""Replicas behind one address, killed and drained while clients ask."""
