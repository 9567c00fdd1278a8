"""Parts of methods.py: what methods do to answers, and what they cost."""
