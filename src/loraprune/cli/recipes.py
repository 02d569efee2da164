"""Options from a YAML recipe and from the command line, as one."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NoReturn


class ArgumentError(Exception):
    """Carries a parser's complaint."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints can be put in our words."""

    def error(self, message: str) -> NoReturn:
        """Complain."""
        raise ArgumentError(message)


def published() -> dict[str, Path]:
    """The recipes that the package brings, by name: the methods of the field with their published settings."""
    folder = Path(__file__).parent.parent / "recipes" / "published"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a YAML recipe: a file, or one of the package's by its name.

    Raises:
        ValueError: it cannot be read or is no mapping.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            # To YAML, an unquoted 2:4 is a number to the base of sixty.
            is_pattern = kind is yaml.ScalarNode and re.fullmatch(r"\d+:\d+", value)
            resolver: Any = super()
            return "tag:yaml.org,2002:str" if is_pattern else resolver.resolve(kind, value, implicit)

    try:
        source = path if path.exists() else published().get(str(path), path)
        values = yaml.load(source.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        names = ", ".join(published())
        raise ValueError(f"The recipe {path} does not exist. Published ones go by their names: {names}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"The recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {path} is no mapping of option names to values.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def typed(name: str, value: Any, parser: argparse.ArgumentParser) -> Any:
    """A recipe's value as the command line would have read it: to YAML, 1e-4 is text.

    Raises:
        ValueError: the command line would have refused it.
    """
    flag = f"--{name.replace('_', '-')}"
    action = parser._option_string_actions.get(flag)
    if value is None or isinstance(value, dict) or (isinstance(value, list) and action and action.nargs is None):
        return value
    if action is None or isinstance(action, argparse.BooleanOptionalAction):
        wanted, what = (str, "text") if action is None else (bool, "true or false")
        if not isinstance(value, wanted):
            raise ValueError(f"The recipe's {name} is {value!r}; it must be {what}.")
        return value
    try:
        words = [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
        return vars(parser.parse_args(words))[name]
    except ArgumentError as error:
        raise ValueError(f"The recipe's {name} is {value!r}: {error}") from None


def check_known(recipe: Iterable[str], known: Collection[str]) -> None:
    """Make sure that a recipe names options only.

    Raises:
        ValueError: a name is unknown; the nearest known one is suggested.
    """
    for name in recipe:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"The recipe has an unknown option {name!r}.{hint}")


def with_dashes(argument: str) -> str:
    """``--lora_r`` as ``--lora-r``: training options are understood both ways, and so are ours."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def suggestion(message: str, known: Iterable[str]) -> str:
    """The known option nearest to an unknown one that a parser complains of."""
    marker = "unrecognized arguments: "
    if marker not in message:
        return ""
    unknown = message.partition(marker)[2].split()[0].partition("=")[0]
    names = ["--" + name.replace("_", "-") for name in known]
    near = difflib.get_close_matches(unknown.replace("_", "-"), names, n=1)
    return f"; did you mean {near[0]}?" if near else ""
