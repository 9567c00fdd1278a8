"""Who asks: keys, what each may do and have, and how much of that it has had."""
