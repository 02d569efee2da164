"""The error of a run that the user stopped."""


class InterruptedRunError(Exception):
    """Training was stopped by the user; the message says what was saved and how to go on."""
