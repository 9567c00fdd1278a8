"""What a request wants to see of its own rows: it reads, and never changes, what is computed."""
