from __future__ import annotations

import pytest
from tests.checkpoints import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loraprune.metrics.texts import Text
from loraprune.metrics.windows import cut_into_windows


def text_of(content: str, max_segments: int | None = None) -> Text:
    return Text(name="notes", text=content, source="notes.txt", max_segments=max_segments)


def word_tokenizer() -> PreTrainedTokenizerBase:
    """Like Llama's: words with the space before them, one token before a text."""
    words = ["<s>", "<unk>", *(f"▁{word}" for word in ("a", "naïve", "日本", "café", "ab"))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


class TestTokens:
    def test_windows_follow_one_another_and_a_short_tail_is_dropped(self) -> None:
        windows = cut_into_windows(text_of("abcdefghij"), tiny_tokenizer(), length=4)
        expected = tiny_tokenizer()("abcdefgh")["input_ids"]
        assert windows.ids_WL.flatten().tolist() == expected
        assert (windows.length, windows.first_scored, windows.num_scored) == (4, (1, 1), 6)

    @pytest.mark.parametrize(
        ("bos", "expected"),
        [("auto", [[0, 2, 6], [2, 6, 2]]), ("always", [[0, 2, 6], [0, 2, 6]]), ("never", [[2, 6, 2]])],
    )
    def test_the_text_or_every_window_or_nothing_begins_with_the_token(
        self, bos: str, expected: list[list[int]]
    ) -> None:
        windows = cut_into_windows(text_of("a ab a ab a"), word_tokenizer(), length=3, bos=bos)
        assert windows.ids_WL.tolist() == expected
        assert windows.num_scored == len(expected) * 2, "the first token of a window is not scored, and all others are"

    def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_it(self) -> None:
        closing, plain = tiny_tokenizer(adds="$A </s>"), tiny_tokenizer()
        found, expected = (cut_into_windows(text_of("abcdefg"), tok, length=4) for tok in (closing, plain))
        assert found.ids_WL.tolist() == expected.ids_WL.tolist()
        with pytest.raises(ValueError, match="has 7 tokens"):
            cut_into_windows(text_of("abcdefg"), closing, length=8)

    @pytest.mark.parametrize("adds", ["<s> $A", "<|im_start|> <s> $A </s>"])
    def test_with_a_stride_every_token_behind_the_opening_is_scored_once(self, adds: str) -> None:
        letters = "abcdefghijklm"
        tokenizer = tiny_tokenizer(adds=adds)
        windows = cut_into_windows(text_of(letters), tokenizer, length=7, stride=2, bos="always")
        scored = "".join(
            tokenizer.decode(ids[first:]) for ids, first in zip(windows.ids_WL, windows.first_scored, strict=True)
        )
        assert letters.startswith(scored)
        assert windows.num_bytes == windows.num_scored == len(scored) >= 11

    def test_a_window_without_room_behind_its_opening_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no room after their 2"):
            cut_into_windows(text_of("abc"), tiny_tokenizer(adds="<|im_start|> <s> $A"), length=2, bos="always")

    def test_with_a_stride_every_token_but_those_of_the_tail_is_scored_once(self) -> None:
        letters = "abcdefghijklm"
        windows = cut_into_windows(text_of(letters), tiny_tokenizer(), length=6, stride=2)
        scored = [
            tiny_tokenizer().decode(ids[first:])
            for ids, first in zip(windows.ids_WL, windows.first_scored, strict=True)
        ]
        assert scored == ["bcdef", "gh", "ij", "kl"]

    @pytest.mark.parametrize(
        ("limit", "own", "expected"), [(2, None, 2), (None, 3, 3), (2, 3, 2), (4, 3, 3), (9, None, 5)]
    )
    def test_windows_are_as_many_as_the_limits_allow(self, limit: int | None, own: int | None, expected: int) -> None:
        windows = cut_into_windows(text_of("a" * 10, own), tiny_tokenizer(), length=2, limit=limit)
        assert len(windows.ids_WL) == expected

    def test_a_text_shorter_than_a_window_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"'notes' has 3 tokens .* less than one segment of 4.*--max-length"):
            cut_into_windows(text_of("abc"), tiny_tokenizer(), length=4)


class TestWordsAndBytes:
    def test_bytes_and_words_are_those_of_the_scored_tokens(self) -> None:
        # Scored are the characters of each four but the first: "ne ", "wo ", "hre" and " x.".
        content = "one two three x."
        windows = cut_into_windows(text_of(content), tiny_tokenizer(), length=4)
        scored = [place for place in range(len(content)) if place % 4 != 0]
        begins = [place for place in scored if content[place] != " " and content[place - 1] == " "]
        assert windows.num_bytes == len(scored) == 12
        assert windows.num_words == len(begins)

    @pytest.mark.parametrize("content", ["a naïve 日本 café ab", "a  ab\n\nnaïve", "ab unknown 日本"])
    def test_all_bytes_and_words_are_counted_where_all_tokens_are_scored(self, content: str) -> None:
        tokenizer = word_tokenizer()
        length = len(tokenizer(content)["input_ids"])
        windows = cut_into_windows(text_of(content), tokenizer, length=length)
        assert windows.num_bytes == len(content.encode())
        assert windows.num_words == len(content.split())

    def test_a_character_of_several_tokens_counts_with_the_first_of_them(self) -> None:
        # One token a byte; windows begin at bytes 0, 2, 4 and 6, inside of the two characters of three bytes each.
        windows = cut_into_windows(text_of("a日本z"), tiny_tokenizer(), length=2)
        assert windows.num_scored == 4
        assert windows.num_bytes == 3 + 0 + 0 + 1

    def test_a_tokenizer_without_offsets_is_asked_to_decode(self) -> None:
        tokenizer = ByT5Tokenizer(extra_ids=0)
        windows = cut_into_windows(text_of("one two three x."), tokenizer, length=4)
        # "ne ", "wo ", "hre" and " x." are scored.
        assert (windows.num_bytes, windows.num_words) == (12, 4)
