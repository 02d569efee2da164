from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from tests.checkpoints import BOS, VOCABULARY, byte_model, tiny_tokenizer
from transformers import PreTrainedModel

from loraprune.metrics import perplexity as module
from loraprune.metrics.perplexity import HeldOut, pack_text, perplexity

IGNORED = -100


def sequence(length: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


def direct(model: PreTrainedModel, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, int]:
    """Perplexity and number of predicted tokens, one token of one sequence at a time in 64 bits."""
    total, tokens = 0.0, 0
    model = model.double()
    with torch.no_grad():
        for ids, labels in pairs:
            probabilities = torch.softmax(model(input_ids=ids[None]).logits[0], dim=-1)
            for position in range(1, len(ids)):
                if labels[position] != IGNORED:
                    total -= math.log(probabilities[position - 1, labels[position]].item())
                    tokens += 1
    return math.exp(total / tokens), tokens


def pairs(*lengths: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(ids, ids) for ids in (sequence(length, seed) for seed, length in enumerate(lengths))]


class TestPerplexity:
    def test_it_equals_a_direct_computation_over_sequences_of_different_lengths(self) -> None:
        given = pairs(9, 20, 9, 2, 31)
        found = perplexity(byte_model(), HeldOut(sequences=given))
        expected, tokens = direct(byte_model(), given)
        assert found.perplexity == pytest.approx(expected, rel=1e-5)
        assert found.num_tokens == tokens == 8 + 19 + 8 + 1 + 30
        assert found.segment_length == 31

    def test_masked_labels_are_not_counted(self) -> None:
        given = pairs(9, 20, 9)
        masked = []
        for (ids, labels), unmasked in zip(given, (2, 13, 8), strict=True):
            labels = labels.clone()
            labels[:unmasked] = IGNORED
            masked.append((ids, labels))
        found = perplexity(byte_model(), HeldOut(sequences=masked))
        expected, tokens = direct(byte_model(), masked)
        assert found.perplexity == pytest.approx(expected, rel=1e-5)
        assert found.num_tokens == tokens == 7 + 7 + 1
        assert found.perplexity != pytest.approx(
            perplexity(byte_model(), HeldOut(sequences=given)).perplexity, rel=1e-3
        )

    def test_the_label_of_the_first_token_is_never_predicted(self) -> None:
        ids = sequence(6, 0)
        labels = torch.full_like(ids, IGNORED)
        labels[0] = ids[0]
        with pytest.raises(ValueError, match="no token to predict"):
            perplexity(byte_model(), HeldOut(sequences=[(ids, labels)]))

    def test_the_size_of_batches_does_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = HeldOut(sequences=pairs(9, 9, 9, 9, 9, 5, 5))
        whole = perplexity(byte_model(), given)
        monkeypatch.setattr(module, "_TOKENS_PER_BATCH", 18)
        parts = perplexity(byte_model(), given)
        assert parts.num_tokens == whole.num_tokens
        assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-6)

    def test_a_model_in_16_bits_is_summed_in_32(self) -> None:
        model = byte_model(dtype=torch.bfloat16)
        given = pairs(30, 30)
        with torch.no_grad():
            logits = torch.stack([model(input_ids=ids[None]).logits[0] for ids, _ in given])
        targets = torch.stack([ids for ids, _ in given])[:, 1:]
        expected = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten()).exp()
        assert perplexity(model, HeldOut(sequences=given)).perplexity == pytest.approx(expected.item(), rel=1e-2)

    def test_dropout_is_off_and_the_mode_of_the_model_comes_back(self) -> None:
        model = byte_model(attention_dropout=0.5).train()
        given = HeldOut(sequences=pairs(20))
        first, second = perplexity(model, given), perplexity(model, given)
        assert first == second
        assert model.training

    def test_a_model_that_is_lost_has_infinite_perplexity(self) -> None:
        model = byte_model()
        model.lm_head.weight.data.mul_(1e5)
        assert perplexity(model, HeldOut(sequences=pairs(30))).perplexity == math.inf

    def test_bits_per_byte_follow_from_the_bytes_of_the_text(self) -> None:
        given = pairs(9, 20)
        found = perplexity(byte_model(), HeldOut(sequences=given, num_bytes=58))
        assert found.bits_per_byte == pytest.approx(math.log2(found.perplexity) * 29 / 58)
        assert perplexity(byte_model(), HeldOut(sequences=given)).bits_per_byte is None


class TestPackedText:
    def test_texts_are_joined_by_the_end_token_and_cut_in_full_segments(self) -> None:
        tokenizer = tiny_tokenizer()
        found = pack_text(["one", "two", "three"], tokenizer, segment_length=5)
        assert [tokenizer.decode(ids) for ids, _ in found.sequences] == ["one</s>t", "wo</s>th"]
        assert all(torch.equal(ids, labels) for ids, labels in found.sequences)
        assert found.num_bytes == round(11 * 10 / 14)

    def test_segments_are_opened_and_what_opens_them_is_not_measured(self) -> None:
        texts = ["one", "two", "three"]
        plain = pack_text(texts, tiny_tokenizer(), segment_length=5)
        opened = pack_text(texts, tiny_tokenizer(adds="<s> $A </s>"), segment_length=6, bos="always")
        assert [ids.tolist()[1:] for ids, _ in opened.sequences] == [ids.tolist() for ids, _ in plain.sequences]
        assert {(int(ids[0]), int(labels[0])) for ids, labels in opened.sequences} == {(BOS, IGNORED)}
        assert opened.num_bytes == plain.num_bytes
        once = pack_text(texts, tiny_tokenizer(adds="<s> $A </s>"), segment_length=4)
        assert once.sequences[0][0].tolist()[0] == BOS != once.sequences[1][0].tolist()[0]
        never = pack_text(texts, tiny_tokenizer(adds="<s> $A"), segment_length=5, bos="never")
        assert [ids.tolist() for ids, _ in never.sequences] == [ids.tolist() for ids, _ in plain.sequences]

    def test_no_more_than_the_wanted_segments_are_made(self) -> None:
        found = pack_text(["a" * 100] * 50, tiny_tokenizer(), segment_length=10, max_segments=3)
        assert len(found.sequences) == 3

    def test_text_shorter_than_a_segment_is_refused(self) -> None:
        with pytest.raises(ValueError, match="The text has 4 tokens, less than one segment of 5"):
            pack_text(["one"], tiny_tokenizer(), segment_length=5)
