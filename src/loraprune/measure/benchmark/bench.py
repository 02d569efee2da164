"""A whole benchmark: load the models, measure them in turns, and collect the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache

from loraprune.calibration.progress import ProgressOf
from loraprune.checkpoint.load import DTYPES
from loraprune.layers.unwrap import base_model
from loraprune.measure.benchmark.config import BenchConfig
from loraprune.measure.benchmark.contenders import Contender, contenders_of, in_memory
from loraprune.measure.benchmark.devices import circumstances, device_of, threads
from loraprune.measure.benchmark.flops import CONVENTION
from loraprune.measure.benchmark.inference import decoding, prefill
from loraprune.measure.benchmark.memory import free_memory, weight_bytes
from loraprune.measure.benchmark.random_inputs import InputSize, reads_images, writes_text
from loraprune.measure.benchmark.result import BenchedModel, BenchFigure, BenchResult
from loraprune.measure.benchmark.timing import Rounds
from loraprune.measure.benchmark.training_step import TrainingBench
from loraprune.pruning.errors import memory_that_ran_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def bench(
    models: str | Path | Sequence[str | Path] | Mapping[str, PreTrainedModel],
    config: BenchConfig | None = None,
    *,
    command: str | None = None,
    progress: ProgressOf | None = None,
) -> BenchResult:
    """Measure speed, memory and operations of models in turns. The first model is the reference for the others.

    Args:
        models: folders or Hub names of checkpoints and adapters, or models in memory by display name. An adapter is
            measured unmerged and merged. The profile ``training`` takes the name of one base.
        config: what to measure, and how often.
        command: command line of the user, for the record.
        progress: called with the current work and its progress.

    Raises:
        ValueError: a model cannot be measured, or does not fit the others or the configuration, or memory is too small.
    """
    config = config or BenchConfig()
    given = next(iter(models.values()), None) if isinstance(models, Mapping) else None
    device = device_of(config.device) if given is None else next(given.parameters()).device
    if config.attn_implementation == "flex_attention" and device.type == "cpu":
        raise ValueError("Flex attention is made for an accelerator, and this is a CPU. Choose sdpa or eager.")
    rounds = Rounds(repeats=config.count, warmup=config.warm, progress=progress)
    with threads(config.threads), memory_reported(device, one_at_a_time=config.one_at_a_time):
        if config.profile == "training":
            return _training(models, config, device, rounds, command)
        contenders = in_memory(models) if isinstance(models, Mapping) else contenders_of(_names(models), config)
        return _inference(contenders, config, device, rounds, command)


def _names(models: str | Path | Sequence[str | Path]) -> list[str]:
    listed = [models] if isinstance(models, (str, Path)) else list(models)
    if not listed:
        raise ValueError("The model is missing. Name at least one folder or Hub name.")
    return [str(Path(name).expanduser()) if str(name).startswith("~") else str(name) for name in listed]


def _inference(
    contenders: Sequence[Contender], config: BenchConfig, device: torch.device, rounds: Rounds, command: str | None
) -> BenchResult:
    """Load, measure, and collect the figures."""
    in_memory_already = contenders[0].source.loaded is not None
    asked = None if config.dtype is None or in_memory_already else DTYPES[config.dtype]
    dtype = asked or contenders[0].source.working_dtype(device)
    contexts = [contender.source.context for contender in contenders]
    tokens = config.tokens_for(contexts)
    prompt = config.prompt_for(tokens, contexts) if config.decode_batch else tokens
    if not config.one_at_a_time and not in_memory_already:
        check_memory(contenders, dtype, device)
    groups = [[contender] for contender in contenders] if config.one_at_a_time else [list(contenders)]
    benched: list[BenchedModel] = []
    figures: list[BenchFigure] = []
    left_out: dict[str, str] = {}
    for group in groups:
        models = {contender.label: _loaded(contender, dtype, device, config) for contender in group}
        benched += [_benched(contender, models[contender.label]) for contender in group]
        size = InputSize(batch_size=config.batch_size, tokens=tokens, seed=config.seed)
        figures += prefill(models, size, rounds)
        if config.decode_batch and not all(writes_text(base_model(model)) for model in models.values()):
            left_out["decoding"] = f"a model for {group[0].task} writes no text"
        else:
            for batch in config.decode_batch:
                figures += decoding(models, replace(size, batch_size=batch, tokens=prompt), config.new_tokens, rounds)
        text = not reads_images(base_model(next(iter(models.values()))))
        del models
        clear_device_cache(garbage_collection=True)
    settings = _settings(config, dtype) | ({"tokens": tokens, "prompt_tokens": prompt} if text else {})
    return BenchResult(
        profile="inference",
        models=tuple(benched),
        figures=tuple(_compared(figures, in_turns=not config.one_at_a_time)),
        left_out=left_out,
        settings=settings,
        **circumstances(device, command),
    )


def _training(
    models: Any, config: BenchConfig, device: torch.device, rounds: Rounds, command: str | None
) -> BenchResult:
    """Measure the training steps of one model."""
    if isinstance(models, Mapping):
        raise ValueError("The profile 'training' loads its model itself. Pass the name of a checkpoint.")
    names = _names(models)
    if len(names) > 1:
        raise ValueError(
            f"The profile 'training' measures one model, and you passed {len(names)}. Run it once for each."
        )
    prepared = TrainingBench.of(names[0], config, device)
    figures, left_out, size = prepared.run(rounds)
    clear_device_cache(garbage_collection=True)
    model = BenchedModel(
        label=Path(names[0]).name,
        name=names[0],
        parameters=prepared.structure.num_parameters,
        memory_bytes=size,
        attn_implementation=config.attn_implementation or prepared.source.shapes.config._attn_implementation,
    )
    return BenchResult(
        profile="training",
        models=(model,),
        figures=tuple(_compared(figures, in_turns=not config.one_at_a_time)),
        left_out=left_out,
        settings=_settings(config, prepared.dtype) | {"tokens": prepared.tokens},
        **circumstances(device, command),
    )


def _loaded(contender: Contender, dtype: torch.dtype, device: torch.device, config: BenchConfig) -> PreTrainedModel:
    model = contender.load(dtype, device)
    if config.attn_implementation is not None:
        try:
            base_model(model).set_attn_implementation(config.attn_implementation)
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"{contender.label} cannot run with the attention {config.attn_implementation!r}: "
                f"{str(error).splitlines()[0]}"
            ) from error
    return model


def _benched(contender: Contender, model: PreTrainedModel) -> BenchedModel:
    size, source = contender.file_bytes(model)
    return BenchedModel(
        label=contender.label,
        name=contender.source.name,
        adapter=contender.adapter,
        random_weights=contender.random_seed is not None,
        parameters=sum(value.numel() for value in model.parameters()),
        file_bytes=size,
        file_bytes_from=source,
        memory_bytes=weight_bytes(model),
        attn_implementation=base_model(model).config._attn_implementation,
        fingerprint=contender.source.fingerprint if contender.has_files else None,
    )


def _compared(figures: Sequence[BenchFigure], *, in_turns: bool) -> Iterator[BenchFigure]:
    """Return the figures with their share of the first one of the same measure."""
    first: dict[tuple[str, Any], BenchFigure] = {}
    for figure in figures:
        reference = first.setdefault((figure.measure, figure.settings.get("batch_size")), figure)
        yield replace(figure, share=figure.over(reference, in_turns=in_turns))


def _settings(config: BenchConfig, dtype: torch.dtype) -> dict[str, Any]:
    settled = {"dtype": str(dtype).removeprefix("torch."), "repeats": config.count, "warmup": config.warm}
    return asdict(config) | settled | {"flops": CONVENTION, "turns": not config.one_at_a_time}


# Check of the memory that a benchmark needs, and advice if it is too small.

GIGA = 1e9


def check_memory(contenders: Sequence[Contender], dtype: torch.dtype, device: torch.device) -> None:
    """Check that the weights of all models fit into memory.

    Raises:
        ValueError: they do not fit.
    """
    needed = sum(contender.parameters() for contender in contenders) * dtype.itemsize
    free = free_memory(device)
    if needed > free:
        raise ValueError(
            f"The weights of {len(contenders)} models take {needed / GIGA:.3g} GB, and {device} has "
            f"{free / GIGA:.3g} GB free. {_remedy(one_at_a_time=False)}"
        )


def _remedy(*, one_at_a_time: bool) -> str:
    smaller = "choose fewer tokens, a smaller batch or --dtype bfloat16"
    if one_at_a_time:
        return f"{smaller.capitalize()}."
    return f"Load one after the other (--one-at-a-time), or {smaller}."


@contextmanager
def memory_reported(device: torch.device, *, one_at_a_time: bool) -> Iterator[None]:
    """Add advice to the error if memory runs out in a block.

    Raises:
        ValueError: memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        ran_out = memory_that_ran_out(error)
        if ran_out is None:
            raise
        raise ValueError(f"{ran_out} {_remedy(one_at_a_time=one_at_a_time)}") from error
