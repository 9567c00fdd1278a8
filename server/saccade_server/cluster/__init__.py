"""Replicas of the server in a Ray cluster: a Ray Serve application, with routing of our own."""
