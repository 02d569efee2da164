"""Pages that need nothing but themselves: templates, style sheet and script of this folder in one file."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: object) -> str:
    """Render a template that extends ``page.html.j2``; all text is escaped but ``Markup``.

    The page lets a browser run its own script, known by its hash, and load nothing.

    Args:
        template: name of a file of this folder.
        values: what it shows.
    """
    script = Markup(_source("hover.js.j2"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template(template).render(script=script, script_hash=f"sha256-{digest}", **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["markup"] = Markup
    return environment


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
