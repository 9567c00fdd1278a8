"""A server process, questions to it, and the files that people send."""
