"""What a server is asked for a long time, and what its processes hold."""
