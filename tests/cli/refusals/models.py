"""Models: configs, weights, tokenizers and adapters that cannot be read, for every command that reads a model."""

from __future__ import annotations

import json
from importlib.util import find_spec

from tests.cli.refusals.files import GONE, both, config, cut, fifo, folder_at, gone, renamed, written
from tests.cli.refusals.wrong import Prepare, Wrong, wrong

PRUNE = "prune model --data data.jsonl -o out"
ONESHOT = "oneshot model --data data.jsonl --ratio 0.5 -o out"
RECOVER = "recover model --data data.jsonl -o out"
COMPARE = "compare-criteria model --data data.jsonl"
EVAL = "eval model --ppl data.jsonl"
GGUF = "export model --format gguf"
ONNX = "export model --format onnx"

FILE, WEIGHTS = "model/config.json", "model/model.safetensors"
INDEX = "model/model.safetensors.index.json"
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "model", "r": 2, "target_modules": ["q_proj"]}


def adapter(**changes: object) -> Prepare:
    """An adapter's folder, without weights."""
    return written("adapter/adapter_config.json", json.dumps(ADAPTER | changes))


def indexed(**files: str) -> Prepare:
    """An index of weights in place of the one file."""
    return both(gone(WEIGHTS), written(INDEX, json.dumps({"weight_map": files})))


def sentencepiece() -> Prepare:
    """A SentencePiece model in place of a tokenizer."""
    return both(gone("model/tokenizer.json"), written("model/tokenizer.model", b"\x0a\x05"))


CONFIGS = (
    # values of another kind than the family's
    wrong("plan model", FILE, "hidden_size", "'big'", "Correct", prepare=config(hidden_size="big")),
    wrong(PRUNE, FILE, "num_hidden_layers", "None", "Correct", prepare=config(num_hidden_layers=None)),
    wrong(ONESHOT, FILE, "num_hidden_layers", "2.5", "Correct", prepare=config(num_hidden_layers=2.5)),
    wrong(EVAL, FILE, "initializer_range", "expected float", "Correct", prepare=config(initializer_range=1)),
    wrong("bench model", FILE, "attention_bias", "'yes'", "Correct", prepare=config(attention_bias="yes")),
    wrong(
        "inspect model", FILE, "max_position_embeddings", "'x'", "Correct", prepare=config(max_position_embeddings="x")
    ),
    wrong(GGUF, FILE, "eos_token_id", "'x'", "Correct", prepare=config(eos_token_id="x")),
    wrong(ONNX, FILE, "hidden_size", "'big'", "Correct", prepare=config(hidden_size="big")),
    wrong(RECOVER, FILE, "'int' object", "Correct", prepare=config(id2label=5)),
    wrong(COMPARE, FILE, "rms_norm_eps", "'tiny'", "Correct", prepare=config(rms_norm_eps="tiny")),
    # names that transformers does not know
    wrong(PRUNE, FILE, "dtype is 'float99'", "Correct", prepare=config(dtype="float99")),
    wrong("inspect model", "hidden_act is 'nope'", "Correct", "config.json", prepare=config(hidden_act="nope")),
    wrong(EVAL, "hidden_act is 'nope'", prepare=config(hidden_act="nope")),
    wrong(ONESHOT, "rope_type is 'nope'", "config.json", prepare=config(rope_parameters={"rope_type": "nope"})),
    wrong("plan model", "type is 'nope'", "config.json", prepare=config(rope_scaling={"type": "nope", "factor": 2.0})),
    wrong(COMPARE, FILE, "layer_types", prepare=config(layer_types=["nope", "nope"])),
    wrong("plan model", "'nope'", "Supported types: bert", prepare=config(model_type="nope")),
    wrong("eval model --ppl data.jsonl", "'nope'", "Supported types: bert", prepare=config(model_type="nope")),
    wrong(GGUF, FILE, "'nope'", "known type", prepare=config(model_type="nope")),
    # sizes that no model has
    wrong("plan model", FILE, "num_hidden_layers = 0", "1 or more", prepare=config(num_hidden_layers=0)),
    wrong(ONNX, FILE, "num_hidden_layers = -1", "1 or more", prepare=config(num_hidden_layers=-1)),
    wrong(PRUNE, FILE, "hidden_size = -64", "1 or more", prepare=config(hidden_size=-64)),
    wrong("inspect model", FILE, "head_dim = 0", "1 or more", prepare=config(head_dim=0)),
    wrong(EVAL, FILE, "vocab_size = 0", "1 or more", prepare=config(vocab_size=0)),
    wrong(RECOVER, FILE, "attention heads (7)", "Correct", prepare=config(num_attention_heads=7)),
    wrong("plan model/config.json", FILE, "attention heads (7)", "Correct", prepare=config(num_attention_heads=7)),
    wrong(ONESHOT, "8 query heads", "3 KV heads", prepare=config(num_key_value_heads=3)),
    wrong("bench model", "shapes differ", "config.json", "Correct", prepare=config(intermediate_size=96)),
    wrong(PRUNE, "3", "2 layers", "Correct the number in config.json", prepare=config(num_hidden_layers=3)),
    wrong(COMPARE, "adding_idx", "Correct", "config.json", prepare=config(pad_token_id=99999)),
    # what libraries and we put there
    wrong(EVAL, FILE, "architectures = 5", "a list of names", prepare=config(architectures=5)),
    wrong(GGUF, FILE, "architectures = 'L'", "a list of names", prepare=config(architectures="L")),
    wrong("plan model", FILE, "pruned = 5", "an object", prepare=config(pruned=5)),
    wrong(PRUNE, FILE, "pruned.lists = 5", "Correct", prepare=config(pruned={"lists": 5})),
    wrong("bench model", FILE, "quantization_config = 5", "an object", prepare=config(quantization_config=5)),
    wrong(PRUNE, "model is quantized", "original", prepare=config(quantization_config={"quant_method": "gptq"})),
    # files that are no config
    wrong("plan model", FILE, "is not a model's config", "Correct", prepare=written(FILE, "[1, 2]")),
    wrong("plan model/config.json", FILE, "is not a model's config", "Correct", prepare=written(FILE, "[1, 2]")),
    wrong(EVAL, FILE, "is not a model's config", "Correct", prepare=written(FILE, "5")),
    wrong(PRUNE, FILE, "Expecting value", "Fetch", prepare=written(FILE, "")),
    wrong(ONESHOT, FILE, "0xff", "Fetch", prepare=written(FILE, b'{"model_type": "\xff"}')),
    wrong(GGUF, FILE, "nested too deeply", "Fetch", prepare=written(FILE, "[" * 100_000)),
    wrong("inspect model", FILE, "nested too deeply", "Fetch", prepare=written(FILE, '{"a":' * 100_000)),
    wrong("bench model", FILE, "model_type", prepare=config(model_type=GONE)),
    wrong(RECOVER, FILE, "model_type", prepare=config(model_type=5)),
    wrong(COMPARE, "no config.json", "save_pretrained", prepare=folder_at(FILE)),
    wrong("plan model", "no config.json", "save_pretrained", prepare=fifo(FILE)),
    wrong("prune data.jsonl --data data.jsonl -o out", "no config.json", "save_pretrained"),
    wrong("bench ./gone", "./gone", "no config.json", "save_pretrained"),
    wrong("export gone --format gguf", "gone is not a folder"),
    wrong("verify gone", "gone is not a folder"),
    wrong("plan llama-2-7", "llama-2-7b", "Did you mean"),
)

WEIGHT_FILES = (
    wrong(PRUNE, WEIGHTS, "broken", "Fetch", prepare=cut(WEIGHTS, 100)),
    wrong(ONESHOT, WEIGHTS, "broken", "Fetch", prepare=cut(WEIGHTS, 20_000)),
    wrong(EVAL, WEIGHTS, "broken", "Fetch", prepare=written(WEIGHTS, b"\x00" * 100)),
    wrong("bench model", WEIGHTS, "broken", "Fetch", prepare=written(WEIGHTS, "")),
    wrong(GGUF, WEIGHTS, "cannot be read", prepare=cut(WEIGHTS, 100)),
    wrong(COMPARE, "no weights", "Fetch", prepare=gone(WEIGHTS)),
    wrong(RECOVER, WEIGHTS, "not a file", "Fetch", prepare=folder_at(WEIGHTS)),
    wrong(PRUNE, "pytorch_model.bin", "Convert", prepare=renamed(WEIGHTS, "model/pytorch_model.bin")),
    wrong(
        EVAL, "pytorch_model.bin", "Convert", prepare=both(gone(WEIGHTS), written("model/pytorch_model.bin", b"\x80"))
    ),
    wrong("bench model", "consolidated.00.pth", "Convert", prepare=renamed(WEIGHTS, "model/consolidated.00.pth")),
    wrong(ONESHOT, "q4.gguf", "Convert", prepare=renamed(WEIGHTS, "model/q4.gguf")),
    wrong(ONNX, "no model.safetensors", "save_pretrained", prepare=gone(WEIGHTS)),
    wrong(PRUNE, "model/a.safetensors is missing", "Fetch", prepare=indexed(x="a.safetensors")),
    wrong(EVAL, "'../a.safetensors'", "outside", prepare=indexed(x="../a.safetensors")),
    wrong(RECOVER, "not an index of weights", "Fetch", prepare=both(gone(WEIGHTS), written(INDEX, "{"))),
    wrong(
        "bench model", "not an index of weights", "Fetch", prepare=both(gone(WEIGHTS), written(INDEX, "[" * 100_000))
    ),
    wrong(GGUF, "not an index of weights", "Fetch", prepare=both(gone(WEIGHTS), written(INDEX, "[1]"))),
)

TOKENIZERS = (
    wrong(PRUNE, "No tokenizer", "--tokenizer", prepare=gone("model/tokenizer.json", "model/tokenizer_config.json")),
    wrong(EVAL, "No tokenizer", "--tokenizer", prepare=written("model/tokenizer.json", "{")),
    wrong(ONESHOT, "No tokenizer", "--tokenizer", prepare=written("model/tokenizer.json", "[" * 100_000)),
    wrong(COMPARE, "No tokenizer", "--tokenizer", prepare=written("model/tokenizer_config.json", "[]")),
    wrong(RECOVER, "No tokenizer", "--tokenizer", prepare=written("model/tokenizer.json", b"\xff\xfe")),
    wrong(f"{PRUNE} --tokenizer data.jsonl", "data.jsonl", "--tokenizer"),
    wrong(f"{EVAL} --tokenizer ./gone", "./gone", "--tokenizer"),
    *(
        wrong(line, "tokenizer.model", "loraprune[sentencepiece]", prepare=sentencepiece())
        for line in (PRUNE, EVAL)
        if find_spec("sentencepiece") is None
    ),
)

ADAPTERS = (
    wrong("plan adapter", "LoRA adapter on model", "merge", prepare=adapter()),
    wrong("prune adapter --data data.jsonl -o out", "LoRA adapter on model", "merge", prepare=adapter()),
    wrong("oneshot adapter --data data.jsonl --ratio 0.5 -o out", "LoRA adapter", "merge", prepare=adapter()),
    wrong("inspect adapter", "LoRA adapter", "merge", prepare=written("adapter/adapter_config.json", "{")),
    wrong("export adapter --format gguf", "only an adapter", "merge", prepare=adapter()),
    wrong("eval adapter --ppl data.jsonl", "no adapter_model.safetensors", prepare=adapter()),
    wrong(
        "bench adapter", "adapter_config.json", "Save", prepare=written("adapter/adapter_config.json", "[" * 100_000)
    ),
    wrong(
        "eval adapter --ppl data.jsonl",
        "not a JSON object",
        "Save",
        prepare=written("adapter/adapter_config.json", "[]"),
    ),
    wrong(
        "eval adapter --ppl data.jsonl",
        *("does not fit", "deserializing", "Save it again"),
        prepare=both(adapter(), written("adapter/adapter_model.safetensors", b"\x00" * 100)),
    ),
    wrong(
        "eval adapter --ppl data.jsonl",
        *("names no base", "--base"),
        prepare=both(adapter(base_model_name_or_path=None), written("adapter/adapter_model.safetensors", b"")),
    ),
    wrong(
        "bench adapter",
        *("./gone", "--base"),
        prepare=both(adapter(base_model_name_or_path="./gone"), written("adapter/adapter_model.safetensors", b"")),
    ),
    wrong(
        "eval adapter --ppl data.jsonl",
        *("type NOPE", "LORA"),
        prepare=both(adapter(peft_type="NOPE"), written("adapter/adapter_model.safetensors", b"")),
    ),
    wrong(f"{EVAL} --base model", "--base", "Leave it out"),
)

TABLE: tuple[Wrong, ...] = (*CONFIGS, *WEIGHT_FILES, *TOKENIZERS, *ADAPTERS)
