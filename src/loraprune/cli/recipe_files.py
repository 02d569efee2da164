"""Recipes: YAML files of options, read with the same care as a command line."""

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
"""Bytes that a recipe may have: a file of options is small, and a device has no end."""


def published() -> dict[str, Path]:
    """The recipes that the package brings, by name: the methods of the field with their published settings."""
    folder = Path(__file__).parent.parent / "recipes" / "published"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def command_of(recipe: str) -> str:
    """The command that a published recipe is for: its first line shows the call."""
    found = re.search(r"`(loraprune [a-z-]+) MODEL", recipe)
    assert found is not None
    return found[1]


class _Loader(yaml.SafeLoader):
    """Plain values, each key once."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        # To YAML, an unquoted 2:4 is a number to the base of sixty.
        is_pattern = kind is yaml.ScalarNode and re.fullmatch(r"\d+:\d+", value)
        resolver: Any = super()
        return "tag:yaml.org,2002:str" if is_pattern else resolver.resolve(kind, value, implicit)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases of lists and mappings: a few lines of them stand for more than memory holds."""
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and not isinstance(node, yaml.ScalarNode):
            raise yaml.YAMLError("it repeats a list or a mapping by an alias; write the values out")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Refuse a key that is there twice, of which YAML would drop one."""
        keys = [str(key.value).replace("-", "_") for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"it holds {key} twice; leave one out")
        return super().construct_mapping(node, deep)


def read_recipe(path: Path, command: str) -> dict[str, Any]:
    """Read a YAML recipe: a file, or one of the package's by its name.

    Args:
        path: of the file, or a name.
        command: that it is read for, as typed: ``"loraprune prune"``.

    Raises:
        ValueError: it cannot be read, is no mapping, is for another command, or would let code of others run.
    """
    try:
        is_ours = not path.exists() and str(path) in published()
        text = _text_of(published()[str(path)] if is_ours else path)
        values = yaml.load(text, _Loader)
    except FileNotFoundError:
        names = ", ".join(published())
        raise ValueError(f"The recipe {path} does not exist. Published ones go by their names: {names}.") from None
    except RecursionError:
        raise ValueError(f"The recipe {path} nests too deeply: it is a mapping of option names to values.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {path} is no mapping of option names to values, such as `ratio: 0.5`.")
    if is_ours and command_of(text) != command:
        raise ValueError(f"The recipe {path} is for {command_of(text)}, not for {command}. Use that, or another one.")
    found = {str(key).replace("-", "_"): value for key, value in values.items()}
    if "trust_remote_code" in found:
        raise ValueError(
            f"The recipe {path} holds trust_remote_code, which lets a checkpoint run code here. Only the command line "
            "may say that: --trust-remote-code."
        )
    if "config" in found:
        raise ValueError(f"The recipe {path} holds config, and a recipe reads no other one. Write its values out.")
    return found


def _text_of(path: Path) -> str:
    """The text of a recipe; shells hand over the output of a command as a file below /dev.

    Raises:
        ValueError: it is no file, too large, or no text in UTF-8.
    """
    if path.exists() and not path.is_file() and (path.is_dir() or not path.is_relative_to("/dev")):
        raise ValueError("it is no file. Name a YAML file.")
    with path.open("rb") as file:
        found = file.read(_LARGEST + 1)
    if len(found) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST} bytes, which no file of options has. Name a YAML file.")
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8. Save it as UTF-8, or name another file.") from None


LISTS = {"report_to", "optim_target_modules"}
"""Training options that take one text or a list of them; the parser knows the text alone."""


def typed(
    name: str,
    value: Any,
    parser: argparse.ArgumentParser,
    own: Mapping[str, Option],
    training: Mapping[str, Field[Any]] | None = None,
) -> Any:
    """A recipe's value as the command line would have read it: to YAML, 1e-4 is text.

    Args:
        name: of the option.
        value: as YAML has it.
        parser: of the command.
        own: our options, by name.
        training: fields of the training arguments, by name.

    Raises:
        ValueError: the command line would have refused it.
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
            refuse("; a list holds plain values only.")
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
    """A value as the parser reads it from a command line."""
    try:
        found = parser._get_value(action, str(value))
        parser._check_value(action, found)
    except argparse.ArgumentError as error:
        raise ArgumentError(str(error)) from None
    return found


def check_recipe_stays(values: Mapping[str, Any]) -> None:
    """Make sure that the result does not take the place of the recipe or of the description that the command reads.

    Raises:
        ValueError: it would.
    """
    if values.get("output") is not None:
        check_apart(Path(values["output"]).expanduser(), (values.get("config"), values.get("architecture")))


def check_known(recipe: Iterable[str], known: Collection[str]) -> None:
    """Make sure that a recipe names options only.

    Raises:
        ValueError: a name is unknown; the nearest known one is suggested, or the command that has it.
    """
    for name in recipe:
        if name not in known:
            owners = owners_of("--" + name.replace("_", "-"))
            hint = f" {owners}." if owners else did_you_mean(name, sorted(known)) or " Leave it out."
            raise ValueError(f"The recipe has an unknown option {name!r}.{hint}")
