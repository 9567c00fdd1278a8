"""The options of ``saccade serve``, a file for what belongs together; none imports torch."""
