"""What can go wrong while evaluating or calibrating, in words for the terminal."""


class EvaluationError(Exception):
    """The work cannot be done, or cannot go on."""


class SettingRefused(EvaluationError):
    """The server does not do this; other settings may work."""
