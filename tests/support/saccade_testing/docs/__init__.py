"""Pages taken apart, and the sessions that follow them."""
