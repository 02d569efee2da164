"""Errors that end a run early."""


class InterruptedRunError(Exception):
    """The user stopped training; the message says what was saved and how to resume."""


class BadResultError(ArithmeticError):
    """A finished run has an unusable result; nothing was written."""


class TrainingDivergedError(ArithmeticError):
    """Loss or gradients stayed NaN or Inf; the last good state is saved."""


class DryRunError(Exception):
    """A dry run passed all checks and stops before the work starts."""
