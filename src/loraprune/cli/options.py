"""Options of commands: declared once, read from a recipe and the command line, with old names and typed numbers."""

from __future__ import annotations

import argparse
import difflib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from loraprune.record.replaceable import check_apart

logger = logging.getLogger("loraprune")


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: its key in a recipe file; the flag is the same with dashes.
        target: what it sets: a field of ``run``, of what the command configures, or the ``call`` itself.
        help: one line.
        extra: for argparse.
        field: the field's name where it differs.
        old: name that the option had before, of :data:`OLD_OPTIONS`.
    """

    name: str
    target: str
    help: str
    extra: dict[str, Any]
    field: str | None = None
    old: str | None = None

    @property
    def flag(self) -> str:
        """As typed."""
        return "--" + self.name.replace("_", "-")


def option(
    name: str, target: str, help: str, *, field: str | None = None, old: str | None = None, **extra: Any
) -> Option:
    """One option; ``extra`` is for argparse."""
    return Option(name, target, help, extra, field, old)


SWITCH: dict[str, Any] = {"action": argparse.BooleanOptionalAction}


@dataclass(frozen=True)
class OldOption:
    """An option under a name that it had before.

    Attributes:
        name: the new name.
        extra: of the old one, for argparse.
        forward: turns its value into one of the new option.
    """

    name: str
    extra: Mapping[str, Any]
    forward: Callable[[Any], Any] = lambda value: value


OLD_OPTIONS = {
    "method": OldOption("criterion", {}),
    "refit": OldOption("repair", SWITCH, lambda on: "refit" if on else "none"),
    "refit_damping": OldOption("damping", {"type": float}),
    "head_rounding": OldOption("head_counts", {"choices": ("config", "any")}),
}
"""Options by their old names; they work for one more version, and say what they are called now."""


def old_names(options: Iterable[Option]) -> set[str]:
    """Names that options had before."""
    return {option.old for option in options if option.old is not None}


def add_old_options(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Let a parser understand options under old names; help does not show them."""
    for old in sorted(names):
        parser.add_argument(
            f"--{old.replace('_', '-')}",
            dest=old,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
            **OLD_OPTIONS[old].extra,
        )


def with_new_names(values: Mapping[str, Any], old_names: Collection[str]) -> dict[str, Any]:
    """Values of options given under some old names, under the new ones; each old name is warned of.

    Raises:
        ValueError: an option was given under both of its names.
    """
    found = dict(values)
    for old in sorted(found.keys() & set(old_names)):
        new = OLD_OPTIONS[old]
        before, now = (f"--{name.replace('_', '-')}" for name in (old, new.name))
        if new.name in found:
            raise ValueError(f"{before} is the old name of {now}; give one of them.")
        found[new.name] = new.forward(found.pop(old))
        logger.warning("%s is now called %s; the old name goes with the next version.", before, now)
    return found


OptionGroups = Mapping[str, Iterable[Option]]
"""Options by the title of their group."""


def add_options(parser: argparse.ArgumentParser, groups: OptionGroups) -> None:
    """Add every option, in its group, without defaults: what was not given must not hide a recipe's value."""
    parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, help="a checkpoint's folder or its hub name")
    parser.add_argument("--config", default=argparse.SUPPRESS, type=Path, metavar="RECIPE.yaml",
                        help="recipe file, or the name of a published recipe: the same names as the options; options "
                        "given here win")  # fmt: skip
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for option in options:
            flags = [option.flag]
            if option.name in ("output", "quiet"):
                flags.insert(0, f"-{option.name[0]}")
            group.add_argument(
                *flags, dest=option.name, default=argparse.SUPPRESS, help=option.help.replace("%", "%%"), **option.extra
            )
    add_old_options(parser, old_names(option for options in groups.values() for option in options))


def fields_of(options: Mapping[str, Option], values: Mapping[str, Any], target: str) -> dict[str, Any]:
    """The given values of one target, by field name."""
    return {
        option.field or name: values[name]
        for name, option in options.items()
        if option.target == target and values.get(name) is not None
    }


# Numbers as people type them: ``4.5B`` parameters.

_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def parameter_count(text: str | int | float) -> int:
    """Read ``4.5B``, ``350M``, ``120k`` or a plain number.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    if isinstance(text, (int, float)):
        return int(text)
    digits, suffix = text.strip().replace("_", "").replace(",", ""), ""
    if digits and digits[-1].upper() in _FACTORS:
        digits, suffix = digits[:-1], digits[-1].upper()
    try:
        return round(float(digits) * _FACTORS[suffix])
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of parameters; write 4.5B, 350M or 120000") from None


def names(text: str) -> tuple[str, ...]:
    """``heads,channels`` as a tuple; spaces do not matter."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is an empty list; name at least one, or leave the option out")
    return found


def numbers(text: str) -> tuple[float, ...]:
    """``0.1,0.2`` as a tuple.

    Raises:
        argparse.ArgumentTypeError: a part is no number.
    """
    try:
        return tuple(float(part) for part in names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; write it like 0.1,0.2,0.5") from None


def indices(text: str) -> tuple[int | str, ...]:
    """``0,1,-1`` as a tuple; ``4-7`` stands for 4 to 7, and a share such as ``10%`` stays as it is.

    Raises:
        argparse.ArgumentTypeError: a part is none of these.
    """
    found: list[int | str] = []
    for part in names(text):
        span = re.fullmatch(r"(\d+)-(\d+)", part)
        if span is not None and int(span[1]) <= int(span[2]):
            found += range(int(span[1]), int(span[2]) + 1)
        elif re.fullmatch(r"-?\d+", part):
            found.append(int(part))
        elif re.fullmatch(r"\d+(\.\d+)?%", part):
            found.append(part)
        else:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of layers; write it like 0,1,-1 or 0-3 or 10%")
    return tuple(found)


# Options from a YAML recipe and from the command line, as one.


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
        ValueError: it cannot be read, is no mapping, or would let code of others run.
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
    found = {str(key).replace("-", "_"): value for key, value in values.items()}
    if "trust_remote_code" in found:
        raise ValueError(
            f"The recipe {path} holds trust_remote_code, which lets a checkpoint run code here. Only the command line "
            "may say that: --trust-remote-code."
        )
    return found


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
