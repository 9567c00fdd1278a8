"""Tools: what a request offers, how the model may call them, and what of its text is a call."""
