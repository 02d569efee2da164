"""Which folders may be replaced: those that hold only files from loraprune or ``save_pretrained``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from loraprune.record.places import OutputExistsError, check_kind, check_place, place_of

_CHECKPOINT = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "semi_structured-*.safetensors",
    "semi_structured.json",
    "adapter_config.json",
    "adapter_model*.safetensors",
    "adapter_model.bin",
    "loraprune_*.json",
    "loraprune_state.safetensors",
    "loraprune_best.safetensors",
    "refitted_base_weights.safetensors",
    "pst_masks.safetensors",
    "pruning.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "dict.txt",
    "normalizer.json",
    "spiece.model",
    "sentencepiece*.model",
    "*.spm",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "modeling_*.py",
    "configuration_*.py",
    "tokenization_*.py",
    "processing_*.py",
    "image_processing_*.py",
    "training_args.bin",
)
"""Files of a checkpoint."""

_COMPANIONS = (
    "README.md",
    "LICENSE*",
    "NOTICE*",
    ".gitattributes",
    "report.html",
    "report.json",
    "evaluation.json",
    "plan.json",
    "model*.gguf",
    "model.onnx",
    "model.onnx.data",
)
"""Files beside a checkpoint that are not part of it."""

_ONESHOT_STATE = ("oneshot_run.json", "oneshot_*.safetensors", "oneshot_*.tmp", ".oneshot_*.tmp")
"""Saved steps of a run without training."""

_STATE = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json", "*.tmp")
"""Additional files in a Trainer's checkpoints. A killed run may have left a temporary file."""

_ALONE_TELLING = ("pruning.json", "semi_structured.json", "adapter_config.json")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_NAMED = 3


def is_file_of_checkpoint(name: str) -> bool:
    """Whether a file of this name is part of a checkpoint, which would be damaged without it."""
    return _matches(name, _CHECKPOINT)


def foreign_entries(folder: Path, *, state: bool = False) -> list[str]:
    """Return the files of a folder that neither loraprune nor ``save_pretrained`` wrote, relative to the folder.

    Args:
        folder: folder to inspect.
        state: whether the folder holds the state of a run instead of a result.
    """
    return sorted(str(path.relative_to(folder)) for path in _foreign(folder, state))


def _foreign(folder: Path, state: bool) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_symlink():
            yield path
        elif not path.is_dir():
            if not _matches(path.name, _CHECKPOINT + _COMPANIONS + (_ONESHOT_STATE if state else ())):
                yield path
        elif path.name == "runs":
            yield from (inner for inner in path.rglob("*") if not inner.is_dir() and ".tfevents." not in inner.name)
        elif path.name == "adapter" or (state and re.fullmatch(r"(checkpoint|diverged)-\d+", path.name)):
            known = _CHECKPOINT + _COMPANIONS + _STATE
            yield from (inner for inner in path.iterdir() if not inner.is_file() or not _matches(inner.name, known))
        else:
            yield path


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _is_result(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    with_weights = "config.json" in names and any(_matches(name, _WEIGHTS) for name in names)
    return with_weights or not names.isdisjoint(_ALONE_TELLING)


def check_replaceable(folder: Path, *, state: bool = False) -> None:
    """Check that a non-empty folder may be replaced or removed.

    Raises:
        OutputExistsError: it holds foreign files, or no result.
    """
    foreign = foreign_entries(folder, state=state)
    if not foreign and not state and not _is_result(folder):
        foreign = sorted(path.name for path in folder.iterdir())
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        raise OutputExistsError(
            f"{folder} holds files that loraprune did not write, so it is not replaced, not even with --overwrite: "
            f"{', '.join(foreign[:_NAMED])}{more}. Move it away, or name another output."
        )


def check_output(output: Path, *, overwrite: bool, inputs: Iterable[object] = ()) -> None:
    """Check that a folder may be written.

    Args:
        output: the folder.
        overwrite: whether an existing result may be replaced.
        inputs: files and folders that the run reads. Anything that does not exist is ignored.

    Raises:
        OutputExistsError: the folder is not empty, and ``overwrite`` is off or the content is not our result; or the
            path is a file, a device or similar.
        ValueError: the folder cannot be written, an input is inside it, or it is inside an input.
    """
    check_apart(output, inputs)
    check_standing(output, overwrite=overwrite)
    check_place(output)


def check_standing(output: Path, *, overwrite: bool) -> None:
    """Check that the existing content at a folder's path may be removed.

    Raises:
        OutputExistsError: see :func:`check_output`.
    """
    if output.is_file():
        raise OutputExistsError(f"{output} is a file, but the result is a folder. Name another output.")
    check_kind(output)
    if output.is_mount():
        raise OutputExistsError(f"{output} is a mount point, which cannot be replaced. Name a new folder in it.")
    if not is_filled(output):
        return
    if not overwrite:
        raise OutputExistsError(
            f"{output} exists and is not empty. Choose another folder, or pass --overwrite (overwrite=True)."
        )
    check_replaceable(output)


def check_apart(output: Path, inputs: Iterable[object], *, around: bool = True) -> None:
    """Check that replacing a folder deletes no input of the run.

    Args:
        output: the folder.
        inputs: inputs of the run.
        around: whether the output must not be inside an input folder either.

    Raises:
        ValueError: an input would be deleted.
    """
    place = output.resolve()
    for source in inputs:
        path = place_of(source)
        if path is None:
            continue
        name = source if isinstance(source, (str, Path)) else path
        if path.is_relative_to(place):
            raise ValueError(f"{name} lies in the output folder {output}. Name another output folder.")
        if around and is_filled(output) and place.is_relative_to(path):
            raise ValueError(f"The output folder {output} lies in {name}, which the run reads. Name another one.")


def is_filled(folder: Path) -> bool:
    """Whether a folder exists and is not empty."""
    return folder.is_dir() and any(folder.iterdir())
