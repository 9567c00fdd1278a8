"""What a process writes about itself: a line for each record, as text or as JSON; no torch."""
