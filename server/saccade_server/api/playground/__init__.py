"""The playground, a page at ``/``: ask, edit, and see what became of the answer."""
