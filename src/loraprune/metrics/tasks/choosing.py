"""Resolution of requested tasks, by name or file, before any weight is loaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraprune.metrics.tasks.lm_eval import harness_index
from loraprune.metrics.tasks.local import NUM_FEWSHOT, VERSION, LocalTask, read_items, read_subjects
from loraprune.options.near import near_names

COMMONSENSE = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""The seven zero-shot tasks of the LoRAPrune paper (section 4.1)."""

GROUPS: Mapping[str, tuple[str, ...]] = {"commonsense": COMMONSENSE}
"""Our own groups. Each task of a group is scored and reused separately."""

SHOTS: Mapping[str, int] = {"mmlu": NUM_FEWSHOT}
"""Numbers of few-shot examples for which papers differ from the harness's default."""

_FILES = (".jsonl", ".json", ".csv")


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenTask:
    """One task to score.

    Attributes:
        name: name of the harness's task, or of the file.
        num_fewshot: examples before each question; None if the tasks of the harness set it themselves.
        group: group that it was chosen by, if any.
        data: plain values that identify the data: hashes of files, or dataset and version of the harness.
        subjects: items of local files; several for a folder.
    """

    name: str
    num_fewshot: int | None
    group: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    subjects: Sequence[LocalTask] = ()


def check_tasks(names: Sequence[str], *, num_fewshot: int | None = None, limit: int | None = None) -> list[ChosenTask]:
    """Resolve names of tasks, groups and files, and read the files. This needs no model and no network.

    A name without a folder and a suffix is a task of the harness; ``./mmlu`` is a folder. A task named twice, or also
    by a group, is scored once.

    Args:
        names: names of lm-eval's tasks, groups and tags; ``commonsense``; files ``*.jsonl`` and ``*_test.csv``; folders
            of MMLU csv files.
        num_fewshot: examples before each question; None is 5 for MMLU and the task's own number for others (mostly 0).
        limit: score only the first items, this many of each task or subject.

    Raises:
        ValueError: lm-eval is missing, a name is unknown (the nearest ones are suggested), or a file is wrong.
    """
    for option, value, least in (("--num-fewshot", num_fewshot, 0), ("--limit", limit, 1)):
        if value is not None and value < least:
            raise ValueError(f"{option} must be at least {least}, not {value}.")
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError('Tasks are scored by lm-eval. Install it: pip install "loraprune[evaluation]"')
    chosen: dict[str, ChosenTask] = {}
    for name in names:
        if _is_path(name):
            task = _from_path(name, num_fewshot)
            known = chosen.get(task.name)
            if known is not None and known.data != task.data:
                raise ValueError(f"Two of the tasks are called {task.name}. Rename a file, or score one at a time.")
            chosen.setdefault(task.name, task)
        elif name in GROUPS:
            for member in GROUPS[name]:
                chosen.setdefault(member, _from_harness(member, num_fewshot, group=name))
        else:
            for task in _of_harness(name, num_fewshot):
                chosen.setdefault(task.name, task)
    return list(chosen.values())


def _is_path(name: str) -> bool:
    if name.endswith(_FILES) or os.sep in name or name in (".", "..") or (Path(name).suffix and Path(name).is_file()):
        return True
    return Path(name).exists() and name not in GROUPS and name not in harness_index()


def _from_path(name: str, num_fewshot: int | None) -> ChosenTask:
    path = Path(name).expanduser()
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{name} is not a regular file, and items are read more than once. Write them into a file.")
    if not path.exists():
        raise ValueError(f"There is no task file {name}.{_near_files(path)}")
    if path.is_dir() or path.suffix == ".csv":
        shots = NUM_FEWSHOT if num_fewshot is None else num_fewshot
        subjects = read_subjects(path, num_fewshot=shots)
        title = path.name if path.is_file() else path.resolve().name + "/"
    elif path.suffix in (".jsonl", ".json"):
        shots = num_fewshot or 0
        title = path.name
        subjects = [read_items(path, title)]
        subjects[0].check_fewshot(shots)
    else:
        raise ValueError(f"{name} is not a task file. Name a .jsonl, an MMLU _test.csv or a folder of these.")
    files = {file: digest for subject in subjects for file, digest in subject.files.items()}
    return ChosenTask(name=title, num_fewshot=shots, data={"version": VERSION, "sha256": files}, subjects=subjects)


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder}."
    near = near_names(path.name, [entry.name for entry in folder.iterdir()])
    return f" Did you mean {folder / near[0]}?" if near else ""


def _of_harness(name: str, num_fewshot: int | None) -> list[ChosenTask]:
    entry = harness_index().get(name)
    if entry is None:
        # Most names of the harness are subjects or languages of larger tasks. Short names are the likely matches.
        known = sorted({*harness_index(), *GROUPS}, key=len)
        near = near_names(name, known, 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"There is no task {name!r}.{hint} Name a task of lm-eval, the group {', '.join(GROUPS)}, or a file with "
            "items (.jsonl, or a folder of MMLU csv files)."
        )
    if entry.kind.name == "TAG":
        return [
            _from_harness(member, num_fewshot, group=name) for member in sorted(entry.tags) if member in harness_index()
        ]
    return [_from_harness(name, num_fewshot)]


def _from_harness(name: str, num_fewshot: int | None, group: str | None = None) -> ChosenTask:
    entry = harness_index().get(name)
    config: Mapping[str, Any] = (entry.cfg if entry is not None else None) or {}
    shots = num_fewshot if num_fewshot is not None else SHOTS.get(name, config.get("num_fewshot"))
    metadata = config.get("metadata")
    data = {
        "harness": "lm-eval",
        "dataset": config.get("dataset_path"),
        "dataset_name": config.get("dataset_name"),
        "version": metadata.get("version") if isinstance(metadata, Mapping) else None,
    }
    return ChosenTask(
        name=name, num_fewshot=shots, group=group, data={key: value for key, value in data.items() if value is not None}
    )
