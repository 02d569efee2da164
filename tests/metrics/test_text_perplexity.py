from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.checkpoints import byte_model, sentences, tiny_tokenizer
from transformers import PreTrainedModel

from loraprune.metrics.text_perplexity import starting_batch_size, text_perplexity
from loraprune.metrics.texts import Text
from loraprune.metrics.windows import Windows, cut_into_windows

TEXT = Text(name="notes", text="\n".join(sentences(20)), source="notes.txt")


def windows_of(length: int = 32, **options: Any) -> Windows:
    return cut_into_windows(TEXT, tiny_tokenizer(), length=length, **options)


def naive_nll(model: PreTrainedModel, length: int, stride: int) -> tuple[float, int]:
    """Token after token, in 64 bits: each one once, with what comes before it in the first window that it is in."""
    ids = tiny_tokenizer()(TEXT.text)["input_ids"]
    model = model.double()
    total, count, scored = 0.0, 0, 0
    for start in range(0, len(ids) - length + 1, stride):
        window = ids[start : start + length]
        first = max(scored - start, 1)
        if stride == length:
            first = 1
        for place in range(first, length):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([window[:place]]), use_cache=False).logits[0, -1]
            total -= torch.log_softmax(logits, -1)[window[place]].item()
            count += 1
        scored = start + length
    return total, count


@pytest.mark.parametrize("stride", [None, 24, 10])
def test_the_perplexity_is_that_of_a_loop_over_the_tokens(stride: int | None) -> None:
    windows = windows_of(stride=stride)
    measured = text_perplexity(byte_model(), windows)
    total, count = naive_nll(byte_model(), 32, stride or 32)
    assert (measured.num_tokens, measured.num_segments) == (count, len(windows.ids_WL))
    assert measured.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    assert measured.word_perplexity == pytest.approx(math.exp(total / windows.num_words), rel=1e-4)
    assert measured.bits_per_byte == pytest.approx(total / math.log(2) / windows.num_bytes, rel=1e-6)


def test_the_batch_size_changes_nothing() -> None:
    model, windows = byte_model(), windows_of()
    results = [text_perplexity(model, windows, batch_size=size).perplexity for size in (1, 3, 5, 1000, None)]
    assert results == pytest.approx([results[0]] * 5, rel=1e-6)


def test_progress_is_told_in_tokens() -> None:
    progress: list[tuple[int, int]] = []
    text_perplexity(
        byte_model(), windows_of(limit=5), batch_size=2, progress=lambda done, total: progress.append((done, total))
    )
    assert progress == [(0, 160), (64, 160), (128, 160), (160, 160)]


def test_likelihoods_are_taken_in_32_bits_whatever_the_dtype() -> None:
    model, windows = byte_model().to(torch.bfloat16), windows_of(limit=3)
    with torch.no_grad():
        logits = model(input_ids=windows.ids_WL, use_cache=False).logits.float()[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows.ids_WL[:, 1:].flatten()).item()
    assert text_perplexity(model, windows).perplexity == pytest.approx(math.exp(nll), rel=1e-6)


class TestMemory:
    @pytest.fixture(autouse=True)
    def _without_garbage_collection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It takes a second in a process that has imported everything."""
        monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection: None)

    @staticmethod
    def limit_(model: PreTrainedModel, allowed: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Let a model run out of memory; returns the sizes of the batches that it was given."""
        sizes: list[int] = []
        forward = model.forward

        def limited(input_ids: torch.Tensor, **inputs: Any) -> Any:
            sizes.append(len(input_ids))
            if not allowed(len(input_ids)):
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return forward(input_ids=input_ids, **inputs)

        monkeypatch.setattr(model, "forward", limited)
        return sizes

    def test_a_batch_that_is_too_large_is_halved_and_what_was_done_stays_done(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, windows = byte_model(), windows_of(limit=8)
        expected = text_perplexity(model, windows)
        sizes = self.limit_(model, lambda size: size < 3, monkeypatch)
        assert text_perplexity(model, windows).perplexity == pytest.approx(expected.perplexity, rel=1e-6)
        assert sizes[-4:] == [2, 2, 2, 2]
        assert len([size for size in sizes if size < 3]) == 4

    @pytest.mark.parametrize(("batch_size", "what"), [(None, "one segment"), (4, "4 segments \\(--batch-size\\)")])
    def test_no_memory_at_all_is_told_with_the_way_out(
        self, batch_size: int | None, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = byte_model()
        self.limit_(model, lambda size: False, monkeypatch)
        with pytest.raises(ValueError, match=f"not enough memory for {what} of 32 tokens.*--max-length"):
            text_perplexity(model, windows_of(), batch_size=batch_size)

    def test_other_errors_of_the_model_are_not_taken_for_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = byte_model()
        monkeypatch.setattr(model, "forward", lambda **inputs: [][0])
        with pytest.raises(IndexError):
            text_perplexity(model, windows_of())

    def test_the_first_batch_size_goes_by_tokens_and_by_logits(self) -> None:
        assert starting_batch_size(byte_model(), 32) == 4096 // 32
        assert starting_batch_size(byte_model(vocab_size=1 << 18), 64) == (1 << 27) // (1 << 18) // 64
