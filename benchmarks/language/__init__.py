"""Text methods on a real checkpoint: prompts written before measuring, and what is counted."""
