"""Bodies of requests: from bytes to checked models, and a verdict for every field."""
