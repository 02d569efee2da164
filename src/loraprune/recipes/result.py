"""Result of every recipe: model and record, with methods to save and publish them."""

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
    """Result of a run.

    Attributes:
        model: merged model, ready to use.
        tokenizer: tokenizer of a model that reads text, else None.
        image_processor: image processor of a model that reads images, or None.
        structure: structure of the model before pruning.
        plan: remaining groups; all of them if weights were set to zero.
        report: data of the report.
        run_record: record of the run with all measures: the contents of ``pruning.json``.
        card: text of the model card.
        output: folder of the checkpoint, or None.
        pushed: address of the commit on the Hub, if the run pushed its result.
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
        """Measures of the dense and the pruned model, and the history of the run, as plain values."""
        found: dict[str, Any] = encode(self.run_record.metrics, finite=False)
        return found

    @cached_property
    def record(self) -> dict[str, Any]:
        """Record of the run as plain values, as in ``pruning.json``."""
        found: dict[str, Any] = encode(self.run_record)
        return found

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False, report: bool = True) -> Path:
        """Write the model as an ordinary checkpoint, with its tokenizer, its card and the record of the run.

        Args:
            folder: folder to write; it appears complete or not at all.
            overwrite: replace an existing result.
            report: also write the report.

        Returns:
            The folder.

        Raises:
            OutputExistsError: the folder is not empty, and ``overwrite`` is off or its contents are not a result.
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
        """Publish the output of :meth:`save_pretrained` on the Hub, in one commit.

        Args:
            repo_id: ``organization/name``, or a name in your own namespace; created if it does not exist.
            private: whether a new repository is private; None is the account's default.
            token: token for the Hub; None is ``HF_TOKEN``, or the token that ``hf auth login`` stored.
            commit_message: message of the commit.
            revision: branch to commit to; None is the main one.
            report: also publish the report.

        Returns:
            The address of the commit.

        Raises:
            ValueError: there is no login, it has no write access, or the Hub is switched off or out of reach.
            WriteError: the Hub did not accept the result.
        """
        target = HubTarget(name=repo_id, private=private, revision=revision, token=token)
        target.check()
        with tempfile.TemporaryDirectory(prefix="loraprune-") as scratch:
            folder = self.save_pretrained(Path(scratch) / "model", report=report)
            return target.push(folder, message=commit_message)
