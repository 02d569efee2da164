"""Recipes: YAML files of options, checked like a command line."""

from __future__ import annotations

import argparse
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from loraprune.cli.options import Option, indices, names, numbers
from loraprune.cli.parsing import ArgumentError, owners_of
from loraprune.options.near import did_you_mean
from loraprune.record.replaceable import check_apart

_LARGEST = 1 << 20
"""Maximum size of a recipe in bytes: reading a device might never end."""


def published() -> dict[str, Path]:
    """Return the bundled recipes by name: published methods with their settings."""
    folder = Path(__file__).parent.parent / "recipes" / "published"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def command_of(recipe: str) -> str:
    """Return the command of a published recipe, which its first line shows."""
    found = re.search(r"`(loraprune [a-z-]+) MODEL", recipe)
    assert found is not None
    return found[1]


class _Loader(yaml.SafeLoader):
    """Loads plain values, and rejects repeated keys."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        # YAML reads an unquoted 2:4 as a base-60 number.
        is_pattern = kind is yaml.ScalarNode and re.fullmatch(r"\d+:\d+", value)
        resolver: Any = super()
        return "tag:yaml.org,2002:str" if is_pattern else resolver.resolve(kind, value, implicit)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Reject aliases of lists and mappings: a few lines of them can expand to more than memory holds."""
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and not isinstance(node, yaml.ScalarNode):
            raise yaml.YAMLError("it repeats a list or a mapping by an alias; write the values out")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Reject a repeated key, of which YAML would drop one."""
        keys = [str(key.value).replace("-", "_") for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"it holds {key} twice; leave one out")
        return super().construct_mapping(node, deep)


def read_recipe(path: Path, command: str) -> dict[str, Any]:
    """Read a YAML recipe: a file, or a bundled recipe by name.

    Args:
        path: path of the file, or a name.
        command: command that reads it, as typed: ``"loraprune prune"``.

    Raises:
        ValueError: the recipe cannot be read, is not a mapping, is for another command, or contains an option that
            recipes may not set.
    """
    try:
        is_ours = not path.exists() and str(path) in published()
        text = _text_of(published()[str(path)] if is_ours else path)
        values = yaml.load(text, _Loader)
    except FileNotFoundError:
        names = ", ".join(published())
        raise ValueError(f"The recipe {path} does not exist. Names of published recipes: {names}.") from None
    except RecursionError:
        raise ValueError(f"The recipe {path} is nested too deeply. Write option names with plain values.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {path} must be a mapping of option names to values, such as `ratio: 0.5`.")
    if is_ours and command_of(text) != command:
        raise ValueError(
            f"The recipe {path} is for {command_of(text)}, not for {command}. Use that command, or another recipe."
        )
    found = {str(key).replace("-", "_"): value for key, value in values.items()}
    if "trust_remote_code" in found:
        raise ValueError(
            f"The recipe {path} holds trust_remote_code, which lets a checkpoint run code here. Only the command line "
            "can set it: --trust-remote-code."
        )
    if "config" in found:
        raise ValueError(f"The recipe {path} holds config, but a recipe cannot read another one. Write the values out.")
    return found


def _text_of(path: Path) -> str:
    """The text of a recipe. Files below /dev are allowed, because shells pass the output of a command that way.

    Raises:
        ValueError: ``path`` is not a file, is too large, or is not UTF-8 text.
    """
    if path.exists() and not path.is_file() and (path.is_dir() or not path.is_relative_to("/dev")):
        raise ValueError("it is not a file. Name a YAML file.")
    with path.open("rb") as file:
        found = file.read(_LARGEST + 1)
    if len(found) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST} bytes, too many for a recipe. Name a YAML file.")
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text. Save it as UTF-8, or name another file.") from None


LISTS = {"report_to", "optim_target_modules"}
"""Training options that take one text or a list; the parser knows only the text."""


def typed(
    name: str,
    value: Any,
    parser: argparse.ArgumentParser,
    own: Mapping[str, Option],
    training: Mapping[str, Field[Any]] | None = None,
) -> Any:
    """Convert a recipe's value as the command line does; YAML reads 1e-4 as text.

    Args:
        name: name of the option.
        value: value from YAML.
        parser: parser of the command.
        own: our options, by name.
        training: fields of the training arguments, by name.

    Raises:
        ValueError: the command line would reject the value.
    """
    training = training or {}

    def refuse(why: str) -> NoReturn:
        raise ValueError(f"The recipe's {name} is {reprlib.repr(value)}{why}") from None

    action = parser._option_string_actions.get(f"--{name.replace('_', '-')}")
    if value is None:
        if (name in own and own[name].optional) or (name in training and training[name].default is None):
            return None
        raise ValueError(f"The recipe's {name} has no value. Give it one, or leave it out.")
    if isinstance(value, dict):
        if name in own or not name.endswith(("_kwargs", "_config")):
            refuse("; it takes no mapping. Give it one value.")
        return value
    if isinstance(action, argparse.BooleanOptionalAction):
        return value if isinstance(value, bool) else refuse("; it must be true or false.")
    if isinstance(value, list):
        if any(isinstance(item, (list, dict, bool)) or item is None for item in value):
            refuse("; a list must hold only plain values.")
        if name in LISTS:
            return value
        takes_text = action is not None and action.nargs is None and action.type in (names, indices, numbers)
        if action is None or (action.nargs != "+" and not takes_text):
            refuse("; it takes no list. Give it one value.")
        items = value if action.nargs == "+" else [",".join(map(str, value))]
    else:
        is_text = action is None or (action.type in (None, str, Path) and action.choices is None)
        if is_text and (name in own or action is None) and isinstance(value, (bool, int, float)):
            refuse("; it must be text. Put it in quotes.")
        items = [value]
    if action is None:
        return value
    try:
        found = [_read(parser, action, item) for item in items]
    except ArgumentError as error:
        refuse(f": {error}")
    if action.nargs == "+" and not found:
        refuse("; the list is empty. Name at least one, or leave it out.")
    return found if action.nargs == "+" else found[0]


def _read(parser: Any, action: argparse.Action, value: object) -> Any:
    """Read a value as the parser does on a command line."""
    try:
        found = parser._get_value(action, str(value))
        parser._check_value(action, found)
    except argparse.ArgumentError as error:
        raise ArgumentError(str(error)) from None
    return found


def check_recipe_stays(values: Mapping[str, Any]) -> None:
    """Check that the result does not overwrite the recipe or the description that the command reads.

    Raises:
        ValueError: it would.
    """
    if values.get("output") is not None:
        check_apart(Path(values["output"]).expanduser(), (values.get("config"), values.get("architecture")))


def check_known(recipe: Iterable[str], known: Collection[str]) -> None:
    """Check that a recipe contains only known options.

    Raises:
        ValueError: an option is unknown; the message suggests the nearest one, or the command that has it.
    """
    for name in recipe:
        if name not in known:
            owners = owners_of("--" + name.replace("_", "-"))
            hint = f" {owners}." if owners else did_you_mean(name, sorted(known)) or " Leave it out."
            raise ValueError(f"The recipe has an unknown option {name!r}.{hint}")
