"""Images of requests: from a URL to pixels, within limits of time, work and memory."""
