"""What is unusual about matrices, told once for all that it holds for: a large model has hundreds of them."""

from __future__ import annotations

import warnings


class Troubles:
    """Collects what is to be warned of, by kind."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._first: dict[str, str] = {}

    def note(self, kind: str, name: str, what: str) -> None:
        """Something is unusual about a matrix.

        Args:
            kind: matrices with the same kind of trouble are told together.
            name: of the matrix.
            what: a sentence on it; of each kind, that of the first matrix is told.
        """
        self._names.setdefault(kind, []).append(name)
        self._first.setdefault(kind, what)

    def warn(self) -> None:
        """Give one warning a kind."""
        for kind, names in self._names.items():
            others = len(names) - 1
            more = f" and {others} more matri{'x' if others == 1 else 'ces'}" if others else ""
            warnings.warn(f"{names[0]}{more}: {self._first[kind]}", stacklevel=3)
