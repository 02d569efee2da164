from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.checkpoints import byte_model, tiny_tokenizer
from tests.tasks.models import byte_tokenizer, tiny_t5

from loraprune.metrics.completions import DEFAULT_PROMPTS, Writing, complete_prompts, read_prompts

SAMPLED = Writing(max_new_tokens=12, sample=True, temperature=2.0, seed=5)


def by_hand(prompt: str, steps: int) -> str:
    """The likeliest byte, again and again, without a cache."""
    model, tokenizer = byte_model(), tiny_tokenizer()
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_greedy_text_is_the_likeliest_token_again_and_again() -> None:
    (text,) = complete_prompts(byte_model(), tiny_tokenizer(), ["the old"], Writing(max_new_tokens=8))
    assert text == by_hand("the old", 8)


@pytest.mark.parametrize(("adds", "as_if"), [("$A </s>", "$A"), ("<s> $A </s>", "<s> $A"), ("<s> $A", "<s> $A")])
def test_a_prompt_is_gone_on_from_before_its_end(adds: str, as_if: str) -> None:
    model, writing = byte_model(), Writing(max_new_tokens=8)
    (text,) = complete_prompts(model, tiny_tokenizer(adds=adds), ["the old"], writing)
    ids = tiny_tokenizer(adds=as_if)("the old", return_tensors="pt")["input_ids"]
    expected = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert text == tiny_tokenizer().decode(expected, skip_special_tokens=True)


def test_the_seed_alone_decides_what_is_sampled() -> None:
    model, tokenizer = byte_model(), tiny_tokenizer()
    first = complete_prompts(model, tokenizer, ["the old", "a bird"], SAMPLED)
    torch.rand(7)
    assert complete_prompts(model, tokenizer, ["a bird"], SAMPLED) == first[1:], "other prompts do not matter"
    other = Writing(max_new_tokens=12, sample=True, temperature=2.0, seed=6)
    assert complete_prompts(model, tokenizer, ["the old", "a bird"], other) != first
    assert first != complete_prompts(model, tokenizer, ["the old", "a bird"], Writing(max_new_tokens=12))


def test_a_tiny_share_or_temperature_samples_the_likeliest_token() -> None:
    model, tokenizer = byte_model(), tiny_tokenizer()
    greedy = complete_prompts(model, tokenizer, ["the old"], Writing(max_new_tokens=8))
    for writing in (
        Writing(max_new_tokens=8, sample=True, top_p=1e-6),
        Writing(max_new_tokens=8, sample=True, temperature=1e-3),
    ):
        assert complete_prompts(model, tokenizer, ["the old"], writing) == greedy


def test_random_numbers_and_mode_of_the_model_stay_as_they_were() -> None:
    model = byte_model().train()
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    complete_prompts(model, tiny_tokenizer(), ["the old"], SAMPLED)
    assert torch.rand(()) == expected
    assert model.training


def test_a_long_prompt_keeps_its_end_and_text_stops_at_the_end_of_the_context() -> None:
    model, tokenizer = byte_model(), tiny_tokenizer()  # 64 tokens of context
    lengths: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, named: lengths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    complete_prompts(model, tokenizer, ["x" * 200], Writing(max_new_tokens=10))
    handle.remove()
    assert lengths[0] == 54
    assert sum(lengths) <= 64
    (cut,) = complete_prompts(model, tokenizer, ["y" * 100 + "the old"], Writing(max_new_tokens=500))
    assert cut == by_hand(("y" * 100 + "the old")[-32:], 32)


def test_an_encoder_decoder_model_writes_its_target() -> None:
    model, tokenizer = tiny_t5(), byte_tokenizer()
    (text,) = complete_prompts(model, tokenizer, ["abc"], Writing(max_new_tokens=5))
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    target = torch.tensor([[model.config.decoder_start_token_id]])
    for _ in range(5):
        with torch.no_grad():
            logits = model(input_ids=ids, decoder_input_ids=target).logits
        target = torch.cat((target, logits[:, -1:].argmax(-1)), dim=1)
        if target[0, -1] == model.config.eos_token_id:
            break
    assert text == tokenizer.decode(target[0], skip_special_tokens=True)


def test_progress_is_reported_by_prompt() -> None:
    progress: list[tuple[int, int]] = []
    complete_prompts(
        byte_model(),
        tiny_tokenizer(),
        ["a", "b"],
        Writing(max_new_tokens=1),
        progress=lambda *step: progress.append(step),
    )
    assert progress == [(1, 2), (2, 2)]


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no token of the prompt ''"):
        complete_prompts(byte_model(), tiny_tokenizer(), [""])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"temperature": 0.0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"repetition_penalty": 0.0}, "repetition penalty"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Writing(**values)  # type: ignore[arg-type]


def test_a_file_holds_one_prompt_a_line_or_blocks_between_empty_lines(tmp_path: Path) -> None:
    lines, blocks = tmp_path / "lines.txt", tmp_path / "blocks.prompts"
    lines.write_text("one two\nthree  \n", encoding="utf-8")
    blocks.write_text("\ndef f():\n    return\n\n\nsecond\nblock\n", encoding="utf-8")
    assert read_prompts([str(lines), "typed", str(blocks)]) == [
        "one two",
        "three",
        "typed",
        "def f():\n    return",
        "second\nblock",
    ]


def test_our_own_prompts_are_texts_and_no_files() -> None:
    assert read_prompts(DEFAULT_PROMPTS) == list(DEFAULT_PROMPTS)
    assert read_prompts(["x" * 5000]) == ["x" * 5000]


def test_wrong_files_of_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.txt cannot be read"):
        read_prompts([str(tmp_path / "none.txt")])
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no prompts"):
        read_prompts([str(tmp_path / "empty.txt")])
    (tmp_path / "wrong.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts([str(tmp_path / "wrong.txt")])
    with pytest.raises(ValueError, match="A prompt is empty"):
        read_prompts([" "])
