"""What a benchmark found: every figure with its settings and its raw times, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraprune.measure.benchmark.timing import Times
from loraprune.record.codec import read_json

_FORMAT = "loraprune-bench"
_FORMAT_VERSION = 1


class BenchFileError(ValueError):
    """A file is no benchmark that can be read; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class BenchedModel:
    """A model that was measured.

    Attributes:
        label: what tables call it; unique.
        name: folder or hub name as it was given.
        adapter: ``"merged"`` or ``"unmerged"`` of an adapter, else None.
        random_weights: whether the weights are random: dense shapes, made for the sake of their speed.
        parameters: of the model as it was run, an unmerged adapter included.
        file_bytes: of its weights in files; ``file_bytes_from`` says whether they are on disk or computed.
        memory_bytes: of its weights in memory.
        attn_implementation: that it ran with.
        fingerprint: a hash of its files, where known.
    """

    label: str
    name: str
    adapter: str | None = None
    random_weights: bool = False
    parameters: int
    file_bytes: int | None = None
    file_bytes_from: str | None = None
    memory_bytes: int
    attn_implementation: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class BenchFigure:
    """One measurement of one contender.

    Attributes:
        contender: label of the model; in the training profile, what the step did.
        measure: ``"prefill"`` (or ``"forward pass"``), ``"decoding"`` or ``"training step"``.
        settings: all that the figure depends on beyond the settings of the whole benchmark.
        times: seconds of a pass, of a decoded token (for all sequences of the batch) or of a step.
        share: time as a share of the first contender's: median over the turns (without turns, ratio of the medians).
        tokens: that one of these times stands for; None of images.
        items: sequences or images likewise.
        peak_bytes: most bytes of tensors at once, weights included.
        flops: operations that one of these times stands for; None where they cannot be counted.
        cache_bytes_per_token: of keys and values, in decoding.
        cut_seconds: median seconds to read scores at a cut, of a criterion that reads them only then.
    """

    contender: str
    measure: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    times: Times
    share: float | None = None
    tokens: int | None = None
    items: int = 1
    peak_bytes: int | None = None
    flops: int | None = None
    cache_bytes_per_token: float | None = None
    cut_seconds: float | None = None

    @property
    def per_second(self) -> float:
        """Tokens (of images, items) in a second, from the median."""
        return (self.tokens or self.items) / self.times.median

    @property
    def speed(self) -> float | None:
        """How many times as fast as the first contender."""
        return None if self.share is None else 1 / self.share

    def over(self, reference: BenchFigure, *, in_turns: bool) -> float:
        """Time as a share of another contender's: within the turns where they took turns, else of the medians."""
        return self.times.over(reference.times) if in_turns else self.times.median / reference.times.median

    def to_json(self) -> dict[str, Any]:
        """As plain values; the raw times come last."""
        times = self.times
        named = ("contender", "measure", "tokens", "items", "peak_bytes", "flops", "cache_bytes_per_token")
        return {
            **{name: getattr(self, name) for name in named},
            "settings": dict(self.settings),
            "cut_seconds": self.cut_seconds,
            "share_of_first": self.share,
            "per_second": self.per_second,
            "mean": times.mean,
            "median": times.median,
            "p95": times.p95,
            "min": times.least,
            "seconds": list(times.seconds),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BenchFigure:
        """Read what :meth:`to_json` gave."""
        named = ("contender", "measure", "settings", "tokens", "items", "peak_bytes", "flops")
        return cls(
            **{name: values[name] for name in (*named, "cache_bytes_per_token", "cut_seconds")},
            share=values["share_of_first"],
            times=Times(tuple(values["seconds"])),
        )


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A finished benchmark.

    Attributes:
        profile: ``"inference"`` or ``"training"``.
        models: that were measured; the first is the one that the others are compared with.
        figures: in the order in which they were measured.
        left_out: what was not measured, and why.
        settings: of the whole benchmark.
        machine: device, processor, threads.
        versions: of the libraries.
        created: time, ISO 8601.
        command: what the user typed, or None.
    """

    profile: str
    models: Sequence[BenchedModel]
    figures: Sequence[BenchFigure]
    left_out: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    command: str | None = None

    def tables(self) -> Iterator[tuple[BenchFigure, ...]]:
        """Figures that compare with each other: of one measure and one set of settings."""
        groups: dict[str, list[BenchFigure]] = {}
        for figure in self.figures:
            key = json.dumps((figure.measure, figure.settings.get("batch_size")))
            groups.setdefault(key, []).append(figure)
        yield from map(tuple, groups.values())

    def figure(self, contender: str, measure: str, **settings: Any) -> BenchFigure:
        """The figure of a contender, by measure and settings.

        Raises:
            KeyError: there is none.
        """
        for found in self.figures:
            fits = all(found.settings.get(name) == value for name, value in settings.items())
            if (found.contender, found.measure) == (contender, measure) and fits:
                return found
        raise KeyError(f"The benchmark has no {measure} of {contender!r} with {settings}.")

    def to_text(self) -> str:
        """Strict JSON."""
        values = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "profile": self.profile,
            "created": self.created,
            "command": self.command,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "models": [vars(model) for model in self.models],
            "left_out": dict(self.left_out),
            "figures": [figure.to_json() for figure in self.figures],
        }
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def read_bench(path: str | Path) -> BenchResult:
    """Read a file that ``loraprune bench -o`` wrote.

    Raises:
        BenchFileError: it is none, or was written by a version that this one cannot read.
    """
    try:
        values = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise BenchFileError(f"{path} cannot be read as a benchmark: {error}") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise BenchFileError(f"{path} was not written by loraprune bench. Name another file.")
    if values.get("version") != _FORMAT_VERSION:
        raise BenchFileError(
            f"{path} has version {values.get('version')} of the format, and this loraprune reads {_FORMAT_VERSION}. "
            "Measure again, or use the loraprune that wrote it."
        )
    try:
        named = ("profile", "left_out", "settings", "machine", "versions", "created", "command")
        return BenchResult(
            **{name: values[name] for name in named},
            models=tuple(BenchedModel(**model) for model in values["models"]),
            figures=tuple(BenchFigure.from_json(figure) for figure in values["figures"]),
        )
    except (KeyError, TypeError) as error:
        raise BenchFileError(f"{path} is a broken benchmark: {error} is missing or wrong.") from error
