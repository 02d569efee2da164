"""Scoring of a model in tasks with lm-eval."""

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
"""Factor for the initial batch size on an accelerator. On any device, batches are halved if memory runs out."""


class TaskOptions(TypedDict, total=False):
    """Settings for scoring a task.

    Attributes:
        limit: score only the first items, this many of each task or subject.
        batch_size: requests per batch; ``"auto"``: as many tokens per batch as memory allows. Scores do not depend on
            it.
        max_length: maximum number of tokens of a request; longer ones are truncated at the beginning. None is the
            model's context.
        seed: seed of drawn few-shot examples, and of sampling in tasks that sample.
        chat: write requests with the tokenizer's chat template; examples become turns of the conversation.
        system_prompt: content of a system message before it.
        shared: divide the requests among the processes of the run. All of them must call this with the same task.
        progress: called after every answered request.
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
    """Score a model in several tasks, one after the other.

    Args:
        model: causal or encoder–decoder, in its current state.
        tokenizer: tokenizer of the model; it is not changed.
        tasks: names as for :func:`check_tasks`, or its return value; ``num_fewshot`` applies to names.
        num_fewshot: examples before each question; None: see :func:`check_tasks`.
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
    """Score a model in one task, with the arguments of :func:`score_tasks`.

    Raises:
        ValueError: one batch does not fit into memory, or the model does not support this kind of task.
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
    """Set the number of examples like lm-eval's own ``simple_evaluate``: a task that fixes 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own != 0 and (num_fewshot is not None or own is None):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=seed)


def _evaluate(
    scorer: Any, tasks: Mapping[str, Any], limit: int | None, chat: bool, system_prompt: str | None
) -> Mapping[str, Any]:
    from lm_eval.api.metrics import acc_all, mean
    from lm_eval.evaluator import evaluate

    # The standard error of a mean is computed. Others would need 100,000 resamplings in separate processes and are left
    # out.
    known = all(how in (mean, acc_all) for task in tasks["tasks"].values() for how in task.aggregation().values())
    results: Mapping[str, Any] = evaluate(
        scorer,
        tasks,
        limit=limit,
        bootstrap_iters=1 if known else 0,
        log_samples=False,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,  # like lm-eval's own command
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
    """Convert the harness's results: of the task, or of the group and its tasks."""
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
    """Accuracy of guessing: the mean of 1 / number of choices."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = Counter(instance.doc_id for instance in task.instances)
    return sum(1 / count for count in choices.values()) / len(choices)


def _num_tied(task: Any) -> int | None:
    """Number of items in which several choices share the highest log-likelihood."""
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
    """Split lm-eval's keys, such as ``acc,none`` and ``acc_stderr,none``, into metric and answer filter."""
    for key, value in entry.items():
        metric, comma, chosen_answer = key.partition(",")
        if comma and isinstance(value, (int, float)):
            yield metric if chosen_answer == "none" else f"{metric} ({chosen_answer})", float(value)


# Tasks of lm-eval, loaded: their data, prompts and metrics.


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedTask:
    """A task with its data, usable for any number of models.

    Attributes:
        chosen: the chosen task.
        harness: return value of lm-eval's ``TaskManager.load``: ``tasks``, ``groups`` and ``group_map``.
        data: as in ``chosen``; for a task of the harness, with a hash of the items, which may change on the Hub.
    """

    chosen: ChosenTask
    harness: dict[str, Any]
    data: Mapping[str, Any]


def load_task(chosen: ChosenTask) -> LoadedTask:
    """Build a task. A task of the harness gets its data from the Hub or its cache; a local file needs neither.

    Raises:
        ValueError: the harness cannot load it, because the network or a required package is missing.
    """
    dataset = "." if chosen.subjects else str(chosen.data.get("dataset", chosen.name))
    with quiet_harness(), own_random_numbers(0), hub_or_cache(dataset):
        try:
            loaded = _of_files(chosen) if chosen.subjects else harness_tasks().load([chosen.name])
            data = chosen.data if chosen.subjects else {**chosen.data, "sha256": _digest(loaded["tasks"])}
        except Exception as error:  # any exception that one of thousands of tasks of the harness may raise
            said = str(error).strip().splitlines() or [type(error).__name__]
            reason = said[0] if chosen.subjects else missing_hub() or said[0]
            raise ValueError(
                f"The task {chosen.name} cannot be loaded: {reason}. Its data comes "
                "from the Hub; without a network, name a local file with items (docs/evaluation-tasks.md)."
            ) from error
    return LoadedTask(chosen=chosen, harness=dict(loaded), data=data)


def texts_of(loaded: LoadedTask) -> Iterator[str]:
    """Return all texts of a task's items that may be part of a request."""
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
    """SHA-256 of all scored items."""
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
