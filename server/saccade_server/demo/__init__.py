"""The embedded demo model: weights, processor, samples and the script that trained it."""
