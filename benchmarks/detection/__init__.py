"""Parts of detectors.py: what is asked, what is counted, the table."""
