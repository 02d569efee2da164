"""A realistic report: a small Llama with 6 layers, 4 head groups and 704 channels a layer, tuned for 150 steps."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from loraprune.record.report_data import (
    Completion,
    Cut,
    GroupMap,
    Headline,
    HistoryPoint,
    Importance,
    LayerWidth,
    Recovery,
    RefitError,
    ReportData,
    Row,
    Unit,
)
from loraprune.report import page as html

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS, HEADS, CHANNELS, STEPS, TARGET = 6, 4, 704, 150, 0.5
HEAD_PARAMETERS, CHANNEL_PARAMETERS, OTHER_PARAMETERS = 61_440, 720, 720_000


@pytest.fixture
def sample() -> ReportData:
    """A whole report with everything in it."""
    return sample_report()


KINDS = ["sample", "bare", "one_step", "flat_scores", "one_layer", "large", "not_finite", "recovered", "uneven"]


@pytest.fixture(scope="session", params=KINDS)
def any_report(request: pytest.FixtureRequest) -> ReportData:
    """Reports of every kind that a run may leave, ordinary and odd."""
    build: dict[str, Callable[[], ReportData]] = {
        "sample": sample_report,
        "bare": bare_report,
        "one_step": lambda: replace(
            sample_report(), history=(HistoryPoint(step=1, loss=2.0, ratio=0.0),), cuts=(), completions=()
        ),
        "flat_scores": _flat_scores,
        "one_layer": _one_layer,
        "large": _large,
        "not_finite": _not_finite,
        "uneven": _uneven,
        "recovered": recovered_report,
    }
    return build[request.param]()


@pytest.fixture(scope="session")
def any_page(any_report: ReportData) -> str:
    """The page of each of them; drawing takes a second."""
    return html.render_report(any_report)


@pytest.fixture(scope="session")
def sample_page() -> str:
    """The page of the whole report."""
    return html.render_report(sample_report())


def bare_report() -> ReportData:
    """Build a report with nothing but what it must have."""
    headline = Headline(
        ratio=math.nan,
        target_ratio=math.nan,
        total_before=10,
        total_after=10,
        prunable_before=0,
        prunable_after=0,
    )
    return ReportData(title="t", model="m", created="yesterday", headline=headline)


def recovered_report() -> ReportData:
    """Build the report of a run that tunes a sparse model and prunes nothing."""
    sample = sample_report()
    return replace(
        sample,
        title="demo-llama, recovered",
        headline=replace(sample.headline, ratio=0.0, target_ratio=0.0, total_after=sample.headline.total_before),
        recovery=Recovery(zeros_before=0.5, zeros_after=0.5),
        before="before",
        after="after",
        rows=tuple(replace(row, unrecovered=None) for row in sample.rows),
        history=tuple(replace(point, ratio=0.0) for point in sample.history),
        cuts=(),
        layers=(),
        importance={},
        maps=(),
        refit_errors=(),
        phases={"loading": 2.1, "tuning": 124.0},
        completions=(Completion(prompt="Once", dense=" upon", pruned=" there"),),
        settings={},
        command="",
        notes=(),
    )


def _flat_scores() -> ReportData:
    kept = (True, True, False)
    return replace(
        sample_report(),
        importance={
            "zero": Importance(kind="heads", layer=0, scores=(0.0, 0.0, 0.0), kept=kept),
            "equal": Importance(kind="channels", layer=0, scores=(3e-5, 3e-5, 3e-5), kept=kept),
            "tiny": Importance(kind="experts", layer=0, scores=(5e-324, 1e-310, -1.0), kept=kept),
            "float32": Importance(kind="features", layer=0, scores=(1e-45, 0.0, 1.1e-45), kept=kept),
            "within a decade": Importance(kind="blocks", layer=0, scores=(0.2, 0.5, 0.9), kept=kept),
            "none": Importance(kind="neurons", layer=0, scores=(), kept=()),
        },
    )


def _one_layer() -> ReportData:
    layers = (
        LayerWidth(layer=0, kind="heads", total=1, kept=1),
        LayerWidth(layer=0, kind="channels", total=11008, kept=1),
        LayerWidth(layer=0, kind="experts", total=0, kept=0),
    )
    maps = (
        GroupMap(kind="heads", layer=0, kept=(1.0,)),
        GroupMap(kind="channels", layer=0, kept=(0.01,) * 64, groups_per_cell=172),
        GroupMap(kind="experts", layer=0, kept=()),
    )
    errors = (RefitError(step=0, kind="heads", layer=0, cut=0.2),)
    return replace(sample_report(), layers=layers, maps=maps, refit_errors=errors, rows=())


def _uneven() -> ReportData:
    """Build the report of a model whose layers have different numbers of groups, some of them two dimensions."""
    maps = tuple(
        GroupMap(kind="heads", layer=layer // 2, kept=tuple(float(i % 3 > 0) for i in range(2 + layer)))
        for layer in range(8)
    )
    layers = tuple(
        LayerWidth(layer=item.layer, kind="heads", total=len(item.kept), kept=round(sum(item.kept))) for item in maps
    )
    scores = (
        Row(label="a task with a name that takes very much room", unit=Unit.ACCURACY, dense=None, pruned=0.25),
        Row(label="mmlu", unit=Unit.ACCURACY, dense=0.3, pruned=math.nan),
    )
    return replace(sample_report(), maps=maps, layers=layers, scores=scores, phases={"training": 0.0, "x": math.nan})


def _large() -> ReportData:
    noise = random.Random(1)
    cuts = tuple(
        Cut(step=20 * i, ratio=i / 200, widths={"heads": tuple(noise.randint(1, 8) for _ in range(80))})
        for i in range(1, 101)
    )
    history = tuple(
        HistoryPoint(step=step, loss=3 + noise.gauss(0, 0.3), ratio=min(0.5, step // 20 / 200))
        for step in range(1, 12_001)
    )
    kinds = (("heads", 8), ("channels", 28_672))
    layers = tuple(
        LayerWidth(layer=layer, kind=kind, total=total, kept=noise.randint(total // 3, total))
        for kind, total in kinds
        for layer in range(80)
    )
    scores = tuple(noise.choice((0.0, math.exp(noise.gauss(-14, 3)))) for _ in range(28_672))
    channels = Importance(kind="channels", layer=0, scores=scores, kept=tuple(score > 1e-6 for score in scores))
    maps = tuple(
        GroupMap(
            kind=kind,
            layer=layer,
            kept=tuple(noise.random() if size > 1 else float(noise.random() < 0.5) for _ in range(64)),
            groups_per_cell=size,
        )
        for kind, size in (("heads", 1), ("channels", 448))
        for layer in range(80)
    )
    errors = tuple(
        RefitError(step=cut.step, kind=kind, layer=layer, cut=0.4 * noise.random(), repaired=0.1)
        for cut in cuts
        for kind in ("heads", "channels")
        for layer in range(80)
    )
    return replace(
        sample_report(),
        cuts=cuts,
        history=history,
        layers=layers,
        importance={"channels": channels},
        maps=maps,
        refit_errors=errors,
    )


def _not_finite() -> ReportData:
    losses = (math.nan, math.inf, 2.0, math.nan, 1.0, 1.5, math.nan)
    return replace(
        sample_report(),
        headline=replace(sample_report().headline, ratio=math.nan, target_ratio=math.inf),
        rows=(Row(label="Perplexity", unit=Unit.PERPLEXITY, dense=math.inf, unrecovered=math.nan, pruned=None),),
        history=tuple(HistoryPoint(step=i, loss=loss, ratio=loss / 10) for i, loss in enumerate(losses)),
        cuts=(Cut(step=3, ratio=math.nan), Cut(step=4, ratio=0.1, stability={"heads": math.nan})),
        maps=(GroupMap(kind="heads", layer=0, kept=(math.nan, 1.0)),),
        refit_errors=(RefitError(step=3, kind="heads", layer=0, cut=math.nan, repaired=math.inf),),
        scores=(Row(label="boolq", unit=Unit.ACCURACY, dense=math.nan, pruned=math.inf),),
        phases={"training": math.nan},
        importance={"h": Importance(kind="heads", layer=0, scores=(math.nan, math.inf), kept=(True, False))},
        settings={"lr": math.nan},
    )


def sample_report() -> ReportData:
    """Build the report without chance: the same values at every call."""
    cuts = tuple(_cut(step) for step in range(6, 46, 5))
    importance = {**_importance("heads", HEADS, cuts[-1]), **_importance("channels", CHANNELS, cuts[-1])}
    before, after = _prunable(HEADS, CHANNELS), _prunable(*(cuts[-1].widths[kind][0] for kind in ("heads", "channels")))
    total = OTHER_PARAMETERS + before
    return ReportData(
        title="demo-llama pruned by half",
        model="loraprune/demo-llama",
        created="2026-03-14T15:09:26+00:00",
        headline=Headline(
            ratio=1 - after / before,
            target_ratio=TARGET,
            total_before=total,
            total_after=OTHER_PARAMETERS + after,
            prunable_before=before,
            prunable_after=after,
        ),
        rows=_rows(total, OTHER_PARAMETERS + after),
        history=_history(cuts),
        cuts=cuts,
        layers=tuple(
            LayerWidth(layer=layer, kind=kind, total=total, kept=cuts[-1].widths[kind][layer])
            for kind, total in (("heads", HEADS), ("channels", CHANNELS))
            for layer in range(LAYERS)
        ),
        importance=importance,
        maps=_maps(importance),
        refit_errors=_refit_errors(cuts),
        scores=_scores(),
        phases={"loading": 2.1, "dense measures": 14.0, "training": 124.0, "cuts": 9.3, "final measures": 12.2},
        completions=(
            Completion(
                prompt="Once upon a time, there was a little girl named Lily. She",
                dense=" loved to play outside in the sun. One day, she found a shiny red ball under the big tree.",
                unrecovered=" the the was a a and the of of she she she , , . the was the",
                pruned=" liked to play in the park. One day, she saw a big ball and wanted to play with it.",
            ),
            Completion(
                prompt='Tom said, "',
                dense='Look, a frog!" The frog jumped into the pond and made a big splash.',
                pruned='Look, it is a frog!" The frog was very happy.\nThe end.',
            ),
        ),
        settings={
            "prune": {"ratio": TARGET, "criterion": "fisher", "allocation": "balanced", "refit": True, "round_to": 8},
            "schedule": {"shape": "cubic", "first_step": 6, "last_step": 45, "every": 5},
            "lora": {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
            "train": {"learning_rate": 2e-3, "batch_size": 16, "segment_length": 128, "seed": 0, "resume_from": None},
        },
        versions={"loraprune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.19.1"},
        command="loraprune prune loraprune/demo-llama --data stories.txt --ratio 0.5 --steps 150 -o runs/half",
        notes=("Channels were rounded to a multiple of 8: each layer keeps 264.",),
        machine={"processor": "8-core x86-64", "accelerator": "none", "dtype": "float32", "threads": 8},
    )


def _prunable(heads: int, channels: int) -> int:
    return LAYERS * (heads * HEAD_PARAMETERS + channels * CHANNEL_PARAMETERS)


def _cut(step: int) -> Cut:
    share = 1 - (1 - (step - 1) / 40) ** 3
    heads = 3 if step > 25 else 4
    goal = (1 - TARGET * share) * _prunable(HEADS, CHANNELS) / LAYERS - heads * HEAD_PARAMETERS
    channels = round(goal / CHANNEL_PARAMETERS / 8) * 8
    return Cut(
        step=step,
        ratio=1 - _prunable(heads, channels) / _prunable(HEADS, CHANNELS),
        widths={"heads": (heads,) * LAYERS, "channels": (channels,) * LAYERS},
        stability={} if step == 6 else {"heads": 1 - 1 / step, "channels": 0.6 + 0.3 * share**3},
        seconds=1.25,
    )


def _history(cuts: tuple[Cut, ...]) -> tuple[HistoryPoint, ...]:
    noise = random.Random(0)
    points, jump, ratio, seconds = [], 0.0, 0.0, 0.0
    for step in range(1, STEPS + 1):
        made = [cut for cut in cuts if cut.step == step - 1]
        jump = 0.9 * jump + (0.55 if made else 0.0)
        ratio = next((cut.ratio for cut in cuts if cut.step == step), ratio)
        seconds += 0.9 * (1 - 0.45 * ratio)
        loss = 1.43 + 0.9 * ratio + jump + 0.5 * math.exp(-step / 8) - 0.0012 * step + noise.gauss(0, 0.05)
        parameters = OTHER_PARAMETERS + round((1 - ratio) * _prunable(HEADS, CHANNELS))
        points.append(HistoryPoint(step=step, loss=loss, ratio=ratio, parameters=parameters, seconds=seconds))
    return tuple(points)


def _importance(kind: str, total: int, last: Cut) -> dict[str, Importance]:
    noise = random.Random(kind)
    found = {}
    for layer in range(LAYERS):
        scores = tuple(math.exp(noise.gauss(-11 + 0.3 * layer, 1.6)) for _ in range(total))
        ranks = sorted(range(total), key=lambda group: -scores[group] * math.exp(noise.gauss(0, 0.3)))
        kept = set(ranks[: last.widths[kind][layer]])
        found[f"layers.{layer}.{kind}"] = Importance(
            kind=kind, layer=layer, scores=scores, kept=tuple(group in kept for group in range(total))
        )
    return found


def _maps(importance: dict[str, Importance]) -> tuple[GroupMap, ...]:
    found = []
    for item in importance.values():
        size = -(-len(item.kept) // 64)
        runs = [item.kept[start : start + size] for start in range(0, len(item.kept), size)]
        shares = tuple(sum(run) / len(run) for run in runs)
        found.append(GroupMap(kind=item.kind, layer=item.layer, kept=shares, groups_per_cell=size))
    return tuple(found)


def _refit_errors(cuts: tuple[Cut, ...]) -> tuple[RefitError, ...]:
    noise = random.Random(2)
    return tuple(
        RefitError(
            step=cut.step, kind=kind, layer=layer, cut=0.15 + 0.3 * noise.random(), repaired=0.05 + 0.1 * noise.random()
        )
        for cut in cuts
        for kind in ("heads", "channels")
        for layer in range(LAYERS)
    )


def _scores() -> tuple[Row, ...]:
    figures = (("boolq", 0.62, 0.58), ("piqa", 0.6, 0.571), ("hellaswag", 0.31, 0.302), ("average of 3", 0.51, 0.484))
    return tuple(
        Row(label=name, unit=Unit.ACCURACY, detail="200 items", dense=dense, pruned=pruned)
        for name, dense, pruned in figures
    )


def _rows(before: int, after: int) -> tuple[Row, ...]:
    return (
        Row(label="Parameters", unit=Unit.PARAMETERS, dense=before, unrecovered=after, pruned=after),
        Row(
            label="File size",
            unit=Unit.BYTES,
            dense=2 * before + 4e4,
            unrecovered=2 * after + 4e4,
            pruned=2 * after + 4e4,
        ),
        Row(
            label="Perplexity",
            unit=Unit.PERPLEXITY,
            detail="held-out stories, 128-token segments",
            dense=4.09,
            unrecovered=108.7,
            pruned=6.42,
        ),
        Row(
            label="Bits per byte",
            unit=Unit.BITS_PER_BYTE,
            detail="held-out stories, 128-token segments",
            dense=0.5312,
            unrecovered=1.768,
            pruned=0.7012,
        ),
        Row(
            label="Forward pass",
            unit=Unit.MILLISECONDS,
            detail="8 \N{MULTIPLICATION SIGN} 128 tokens, median of 20",
            dense=61.7,
            pruned=38.2,
        ),
    )
