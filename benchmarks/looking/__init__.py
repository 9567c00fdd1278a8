"""Parts of gaze.py."""
