"""Names of the training options, read from the sources of trl and transformers, because importing takes seconds."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

_SOURCES = (
    ("trl", "trainer/sft_config.py"),
    ("trl", "trainer/base_config.py"),
    ("transformers", "training_args.py"),
)


def training_names() -> set[str]:
    """Return the names of the fields of SFTConfig and its base classes; empty if a source cannot be found."""
    found: set[str] = set()
    for package, file in _SOURCES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return set()
        path = Path(spec.submodule_search_locations[0]) / file
        try:
            body = ast.parse(path.read_text(encoding="utf-8")).body
        except (OSError, SyntaxError):
            return set()
        fields = (item for kind in body if isinstance(kind, ast.ClassDef) for item in kind.body)
        found |= {
            item.target.id for item in fields if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
    return found
