"""Result of a benchmark: all figures with settings and raw times, and the file format."""

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
    """A benchmark file cannot be read; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class BenchedModel:
    """A measured model.

    Attributes:
        label: unique name in tables.
        name: folder or Hub name as given.
        adapter: ``"merged"`` or ``"unmerged"`` for an adapter, else None.
        random_weights: whether the weights are random, for dense shapes that are only timed.
        parameters: parameters of the model as run, including an unmerged adapter.
        file_bytes: bytes of its weights in files; ``file_bytes_from`` says whether they are on disk or computed.
        memory_bytes: bytes of its weights in memory.
        attn_implementation: attention implementation.
        fingerprint: hash of its files, if known.
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
        contender: label of the model; in the training profile, description of the step.
        measure: ``"prefill"`` (or ``"forward pass"``), ``"decoding"`` or ``"training step"``.
        settings: everything that the figure depends on besides the settings of the whole benchmark.
        times: seconds per pass, per decoded token (for all sequences of the batch) or per step.
        share: time as a share of the first contender's: median over the turns (without turns, ratio of the medians).
        tokens: tokens per time; None for images.
        items: sequences or images per time.
        peak_bytes: peak bytes of tensors, including weights.
        flops: operations per time; None if they cannot be counted.
        cache_bytes_per_token: bytes of keys and values, in decoding.
        cut_seconds: median seconds to read scores at a cut, for a criterion that reads them only then.
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
        """Tokens (for images, items) per second, from the median."""
        return (self.tokens or self.items) / self.times.median

    @property
    def speed(self) -> float | None:
        """Speedup over the first contender."""
        return None if self.share is None else 1 / self.share

    def over(self, reference: BenchFigure, *, in_turns: bool) -> float:
        """Time as a share of another contender's: within the turns if there were any, else of the medians."""
        return self.times.over(reference.times) if in_turns else self.times.median / reference.times.median

    def to_json(self) -> dict[str, Any]:
        """The figure as plain values, with the raw times last."""
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
        """Read the output of :meth:`to_json`."""
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
        models: measured models; the first is the reference for the others.
        figures: figures in measuring order.
        left_out: skipped measurements, with reasons.
        settings: settings of the whole benchmark.
        machine: device, processor, threads.
        versions: versions of the libraries.
        created: time, ISO 8601.
        command: command line of the user, or None.
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
        """Groups of comparable figures: one measure and one set of settings each."""
        groups: dict[str, list[BenchFigure]] = {}
        for figure in self.figures:
            key = json.dumps((figure.measure, figure.settings.get("batch_size")))
            groups.setdefault(key, []).append(figure)
        yield from map(tuple, groups.values())

    def figure(self, contender: str, measure: str, **settings: Any) -> BenchFigure:
        """Return the figure of a contender, by measure and settings.

        Raises:
            KeyError: there is none.
        """
        for found in self.figures:
            fits = all(found.settings.get(name) == value for name, value in settings.items())
            if (found.contender, found.measure) == (contender, measure) and fits:
                return found
        raise KeyError(f"The benchmark has no {measure} of {contender!r} with {settings}.")

    def to_text(self) -> str:
        """Return strict JSON."""
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
        BenchFileError: it is not such a file, or its version is not supported.
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
