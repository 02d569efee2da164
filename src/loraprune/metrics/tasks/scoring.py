"""Scores a model in tasks, through lm-eval."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from loraprune.compat.renamed import renamed_keywords
from loraprune.data.hub import hub_or_cache, missing_hub
from loraprune.layers.unwrap import eval_mode
from loraprune.metrics.tasks.choosing import ChosenTask, check_tasks
from loraprune.metrics.tasks.lm_eval import harness_tasks, own_random_numbers, quiet_harness
from loraprune.metrics.tasks.local import group_config, task_config
from loraprune.metrics.tasks.scores import TaskScore

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Unpack

    from loraprune.calibration.progress import ProgressOf

_TOKENS_PER_BATCH = 4096
_LOGITS_PER_BATCH = 1 << 27
ACCELERATOR_FACTOR = 4
"""An accelerator starts with batches so much larger; both halve them when memory runs out."""


class TaskOptions(TypedDict, total=False):
    """How a task is scored.

    Attributes:
        limit: the first items only, so many of each task or subject.
        batch_size: requests at once; ``"auto"``: so many tokens at once as memory allows. Scores do not depend on it.
        max_length: tokens that the model is given at most; what is longer loses its beginning. None: its context.
        seed: of the few-shot examples that are drawn, and of sampling where a task samples.
        chat: ask as in a conversation, by the tokenizer's chat template; examples become turns of it.
        system_prompt: content of a system message before it.
        shared: share the requests out among the processes of the run, all of which call this with the same task.
        progress: hears of every answered request.
    """

    limit: int | None
    batch_size: int | Literal["auto"]
    max_length: int | None
    seed: int
    chat: bool
    system_prompt: str | None
    shared: bool
    progress: ProgressOf | None


@renamed_keywords(told="progress")
def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str | ChosenTask],
    *,
    num_fewshot: int | None = None,
    **options: Unpack[TaskOptions],
) -> list[TaskScore]:
    """Score a model in tasks, one after the other.

    Args:
        model: causal or encoder–decoder, as it is in memory.
        tokenizer: of the model; it is not changed.
        tasks: names as :func:`check_tasks` takes them, or what it returns; ``num_fewshot`` is for names.
        num_fewshot: examples before each question; None: as :func:`check_tasks` says.
        **options: see :class:`TaskOptions`.

    Raises:
        ValueError: see :func:`check_tasks`; or a task's data cannot be loaded; or one batch does not fit into memory.
    """
    chosen: dict[str, ChosenTask] = {}
    for task in tasks:
        given = [task] if isinstance(task, ChosenTask) else None
        for one in given or check_tasks([str(task)], num_fewshot=num_fewshot, limit=options.get("limit")):
            chosen.setdefault(one.name, one)
    return [score_task(model, tokenizer, load_task(task), **options) for task in chosen.values()]


def score_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: LoadedTask,
    *,
    limit: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_length: int | None = None,
    seed: int = 0,
    chat: bool = False,
    system_prompt: str | None = None,
    shared: bool = False,
    progress: ProgressOf | None = None,
) -> TaskScore:
    """Score a model in one task; the arguments are those of :func:`score_tasks`.

    Raises:
        ValueError: one batch does not fit into memory, or the task is of a kind that cannot be asked of this model.
    """
    from loraprune.metrics.tasks.model import HarnessModel

    name = task.chosen.name
    for one in task.harness["tasks"].values():
        _prepare_(one, task.chosen.num_fewshot, seed)

    work = None if progress is None else partial(progress, f"{name} requests")
    tokens = _tokens_at_first(model)
    with quiet_harness(), eval_mode(model), own_random_numbers(seed):
        while True:
            try:
                scorer = HarnessModel(
                    model,
                    tokenizer,
                    tokens_per_batch=tokens,
                    batch_size=None if batch_size == "auto" else batch_size,
                    max_length=max_length,
                    seed=seed,
                    shared=shared,
                    progress=work,
                )
                return _score(task, _evaluate(scorer, task.harness, limit, chat, system_prompt), scorer)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if batch_size != "auto" or tokens == 1:
                    raise ValueError(f"{name}: {_too_large(batch_size)}") from error
            tokens //= 2
            clear_device_cache(garbage_collection=True)


def _prepare_(task: Any, num_fewshot: int | None, seed: int) -> None:
    """Set the number of examples as lm-eval's own ``simple_evaluate`` does: a task that fixes 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own != 0 and (num_fewshot is not None or own is None):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=seed)


def _evaluate(
    scorer: Any, tasks: Mapping[str, Any], limit: int | None, chat: bool, system_prompt: str | None
) -> Mapping[str, Any]:
    from lm_eval.api.metrics import acc_all, mean
    from lm_eval.evaluator import evaluate

    # Errors of a mean are computed. Others would be drawn by 100,000 resamplings in processes of their own: left out.
    known = all(how in (mean, acc_all) for task in tasks["tasks"].values() for how in task.aggregation().values())
    results: Mapping[str, Any] = evaluate(
        scorer,
        tasks,
        limit=limit,
        bootstrap_iters=1 if known else 0,
        log_samples=False,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,  # as lm-eval's own command does
        system_instruction=system_prompt,
    )
    return results


def _tokens_at_first(model: PreTrainedModel) -> int:
    factor = 1 if model.device.type == "cpu" else ACCELERATOR_FACTOR
    embeddings: Any = model.get_input_embeddings()
    vocabulary: int = embeddings.weight.shape[0]
    return max(1, factor * min(_TOKENS_PER_BATCH, _LOGITS_PER_BATCH // vocabulary))


def _too_large(batch_size: int | str) -> str:
    if batch_size == "auto":
        return "a single request does not fit into memory. Use a shorter --max-length or fewer examples."
    return f"a batch of {batch_size} does not fit into memory. Use a smaller --batch-size, or auto."


def _score(task: LoadedTask, results: Mapping[str, Any], scorer: Any) -> TaskScore:
    """The harness' results as ours: of the task itself, or of the group and its tasks."""
    name = task.chosen.name
    top = _part(name, results, task.harness["tasks"], finite=not scorer.num_not_finite)
    return replace(
        top,
        num_requests=scorer.num_requests,
        num_truncated=scorer.num_truncated,
        num_not_finite=scorer.num_not_finite,
        group=task.chosen.group,
    )


def _part(key: str, results: Mapping[str, Any], tasks: Mapping[str, Any], *, finite: bool) -> TaskScore:
    entry = results["results"][key]
    version = results["versions"].get(key)
    subtasks = [_part(child, results, tasks, finite=finite) for child in results["group_subtasks"].get(key, ())]
    return TaskScore(
        name=key,
        version=None if version in (None, "N/A") else str(version),
        num_fewshot=results["n-shot"].get(key),
        num_items=entry.get("sample_len", 0),
        values={metric: value if finite else math.nan for metric, value in _metrics(entry)},
        chance=_chance(tasks[key]) if key in tasks else _chance_of_group(subtasks),
        num_tied=_num_tied(tasks[key]) if key in tasks else _sum([subtask.num_tied for subtask in subtasks]),
        subtasks=subtasks,
    )


def _chance(task: Any) -> float | None:
    """What guessing gives: the mean of one in so many choices."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = Counter(instance.doc_id for instance in task.instances)
    return sum(1 / count for count in choices.values()) / len(choices)


def _num_tied(task: Any) -> int | None:
    """Items whose highest log-likelihood several choices have."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    likelihoods: dict[int, list[float]] = {}
    for instance in task.instances:
        likelihoods.setdefault(instance.doc_id, []).append(instance.resps[0][0])
    return sum(choices.count(max(choices)) > 1 for choices in likelihoods.values())


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _chance_of_group(subtasks: Sequence[TaskScore]) -> float | None:
    chances = [(subtask.chance, subtask.num_items) for subtask in subtasks]
    if not chances or any(chance is None for chance, _ in chances):
        return None
    return sum(chance * items for chance, items in chances if chance is not None) / max(1, sum(n for _, n in chances))


def _metrics(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """lm-eval writes ``acc,none`` and ``acc_stderr,none``: metric and filter of the answers."""
    for key, value in entry.items():
        metric, comma, chosen_answer = key.partition(",")
        if comma and isinstance(value, (int, float)):
            yield metric if chosen_answer == "none" else f"{metric} ({chosen_answer})", float(value)


# Tasks of lm-eval, loaded: their data, prompts and metrics.


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedTask:
    """A task with its data; serves for any number of models, one after the other.

    Attributes:
        chosen: what was asked for.
        harness: as lm-eval's ``TaskManager.load`` gives it: ``tasks``, ``groups`` and ``group_map``.
        data: what is asked, as of ``chosen``; of a task of the harness with a hash of the items, which may change on
            the hub.
    """

    chosen: ChosenTask
    harness: dict[str, Any]
    data: Mapping[str, Any]


def load_task(chosen: ChosenTask) -> LoadedTask:
    """Build a task; one of the harness fetches its data from the hub or its cache, a local file needs neither.

    Raises:
        ValueError: the harness cannot load it, for want of a network or of a package that it needs.
    """
    dataset = "." if chosen.subjects else str(chosen.data.get("dataset", chosen.name))
    with quiet_harness(), own_random_numbers(0), hub_or_cache(dataset):
        try:
            loaded = _of_files(chosen) if chosen.subjects else harness_tasks().load([chosen.name])
            data = chosen.data if chosen.subjects else {**chosen.data, "sha256": _digest(loaded["tasks"])}
        except Exception as error:  # whatever one of thousands of tasks of the harness raises
            said = str(error).strip().splitlines() or [type(error).__name__]
            reason = said[0] if chosen.subjects else missing_hub() or said[0]
            raise ValueError(
                f"The task {chosen.name} cannot be loaded: {reason}. Its data comes "
                "from the hub; without a network, name a local file with items (docs/evaluation-tasks.md)."
            ) from error
    return LoadedTask(chosen=chosen, harness=dict(loaded), data=data)


def texts_of(loaded: LoadedTask) -> Iterator[str]:
    """Everything in a task's items that a model may be asked."""
    for task in loaded.harness["tasks"].values():
        for item in task.eval_docs:
            yield from _strings(item)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(part)


def _digest(tasks: Mapping[str, Any]) -> str:
    """SHA-256 of all items that are scored."""
    digest = hashlib.sha256()
    for name in sorted(tasks):
        digest.update(f"{name}\0".encode())
        for item in tasks[name].eval_docs:
            digest.update(json.dumps(item, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _of_files(chosen: ChosenTask) -> Any:
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    if len(chosen.subjects) == 1:
        return manager.load([task_config(chosen.name, chosen.subjects[0])])
    group = Group.from_config(group_config(chosen.name))
    for task in manager.load([task_config(subject.name, subject) for subject in chosen.subjects])["tasks"].values():
        group.add(task)
    return manager.load([group])
