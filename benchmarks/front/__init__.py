"""What ``frontend.py`` runs: an engine that computes nothing, a server before it, and clients."""
