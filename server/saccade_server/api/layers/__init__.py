"""Layers around all routes, and the connections that carry requests; app.py has their order."""
