"""Errors of runs that end early; what was saved can be gone on from."""


class InterruptedRunError(Exception):
    """Training was stopped by the user; the message says what was saved and how to go on."""


class BadResultError(ArithmeticError):
    """A run came to its end, and its result is one that nobody wants; nothing was written."""


class TrainingDivergedError(ArithmeticError):
    """Loss or gradients stayed NaN or Inf; the last good state is saved."""


class DryRunError(Exception):
    """A dry run ends where the work would start: everything was checked, and nothing was done."""
