"""Grammars that answers must follow: from what requests say to the tokens that may come next."""
