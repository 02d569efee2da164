"""What every recipe gives back: a model, how it came about, and ways to keep or publish both."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.publish import HubTarget
from loraprune.checkpoint.save import check_disk_space, save_checkpoint
from loraprune.record.codec import encode
from loraprune.record.replaceable import check_output
from loraprune.record.report_data import ReportData
from loraprune.record.run_record import RunRecord
from loraprune.report.from_record import write_run_page
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run gives back.

    Attributes:
        model: merged and ready to use.
        tokenizer: of a model that reads text, else None.
        image_processor: of a model that reads images, where it has one.
        structure: of the model before pruning.
        plan: which groups stayed; all of them where weights became zero.
        report: what the report shows.
        run_record: what was done, and all measures: what ``pruning.json`` holds.
        card: text of the model card.
        output: folder of the checkpoint, or None.
        pushed: address of the commit on the hub, where the run pushed its result.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    structure: Structure
    plan: Plan
    report: ReportData = field(repr=False)
    run_record: RunRecord = field(repr=False)
    card: str = field(repr=False)
    output: Path | None = None
    image_processor: Any = None
    pushed: str | None = None

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Measures of the dense and of the pruned model, and the course of the run, as plain values."""
        found: dict[str, Any] = encode(self.run_record.metrics, finite=False)
        return found

    @cached_property
    def record(self) -> dict[str, Any]:
        """What was done, as ``pruning.json`` holds it."""
        found: dict[str, Any] = encode(self.run_record)
        return found

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False, report: bool = True) -> Path:
        """Write the model as an ordinary checkpoint, with its tokenizer, its card and the record of the run.

        Args:
            folder: to make; it appears complete or not at all.
            overwrite: replace a folder that exists.
            report: whether the report is written beside it.

        Returns:
            The folder.

        Raises:
            OutputExistsError: the folder holds something, and ``overwrite`` is off or that is no result.
            OSError: the disk is too full.
            NonFiniteWeightsError: a weight is NaN or infinite.
        """
        folder = Path(folder).expanduser()
        check_output(folder, overwrite=overwrite, inputs=(self.record.get("base_model"),))
        check_disk_space(folder, self.model.num_parameters() * self.model.dtype.itemsize)

        def extras(made: Path) -> None:
            self.run_record.write(made)
            if report:
                write_run_page(self.report, made, folder)

        processor = self.image_processor if self.tokenizer is None else self.tokenizer
        save_checkpoint(folder, self.model, processor, card=self.card, extras=extras, overwrite=overwrite)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a model pruned with loraprune",
        revision: str | None = None,
        report: bool = True,
    ) -> str:
        """Publish what :meth:`save_pretrained` writes on the hub, in one commit.

        Args:
            repo_id: ``organization/name``, or a name of your own; made where it does not exist.
            private: whether a repository that is made is private; None is the account's default.
            token: of the hub; None is that of ``HF_TOKEN``, or the one that ``hf auth login`` stored.
            commit_message: of the commit.
            revision: branch to commit to; None is the main one.
            report: whether the report is published too.

        Returns:
            The address of the commit.

        Raises:
            ValueError: there is no login, it may not write there, or the hub is switched off or out of reach.
            WriteError: the hub did not take the result.
        """
        target = HubTarget(name=repo_id, private=private, revision=revision, token=token)
        target.check()
        with tempfile.TemporaryDirectory(prefix="loraprune-") as scratch:
            folder = self.save_pretrained(Path(scratch) / "model", report=report)
            return target.push(folder, message=commit_message)
