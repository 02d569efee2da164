"""Data: files and folders that hold no texts, rows that cannot be used, and tokens that the model does not know."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import VOCABULARY, tiny_tokenizer
from tests.cli.refusals.files import both, fifo, folder_at, rows, written
from tests.cli.refusals.wrong import Prepare, Wrong, wrong
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

OPTIONS = "--max-length 32 -o out"
NESTED = "[" * 100_000
ITEM = {"query": "The sky is", "choices": ["blue", "square"], "gold": 0}
ROBOT = {"role": "robot", "content": "x"}
OTHER = {"context_options": ["a", "b"], "continuation": "c", "gold": 0}


def prune(data: str) -> str:
    return f"prune model --data {data} {OPTIONS}"


def oneshot(data: str) -> str:
    return f"oneshot model --data {data} --ratio 0.5 {OPTIONS}"


def held_out(data: str) -> str:
    return f"oneshot model --data data.jsonl --eval-data {data} --ratio 0.5 {OPTIONS}"


def recover(data: str) -> str:
    return f"recover model --data {data} {OPTIONS}"


def criteria(data: str) -> str:
    return f"compare-criteria model --data {data} --max-length 32"


def linked(name: str, target: str) -> Prepare:
    """A symbolic link."""

    def prepare(folder: Path) -> None:
        (folder / name).symlink_to(target)

    return prepare


def classifier(folder: Path) -> None:
    """Makes a model that sorts texts."""
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder / "sorter")
    tiny_tokenizer(pad=True).save_pretrained(folder / "sorter")


def with_added_token(folder: Path) -> None:
    """Adds a token to the tokenizer, which the model has no embedding for."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder / "model")


NO_FILES = (
    wrong(
        prune("pipe.jsonl"), "pipe.jsonl", "not a regular file", "Write the data to a file", prepare=fifo("pipe.jsonl")
    ),
    wrong(criteria("pipe.txt"), "pipe.txt", "not a regular file", "Write the data to a file", prepare=fifo("pipe.txt")),
    wrong(held_out("pipe.jsonl"), "pipe.jsonl", "not a regular file", prepare=fifo("pipe.jsonl")),
    wrong(recover("pipes"), "pipes", "no data files", prepare=fifo("pipes/a.jsonl")),
    wrong(oneshot("/dev/null"), "/dev/null", ".jsonl"),
    wrong(prune("/dev/zero"), "/dev/zero", ".jsonl"),
    wrong(prune("empty"), "empty", "no data files", ".jsonl", prepare=folder_at("empty")),
    wrong(criteria("a.jsonl"), "a.jsonl", "no data files", prepare=folder_at("a.jsonl")),
    wrong(prune("gone.jsonl"), "gone.jsonl", "does not exist"),
    wrong(prune("dta.jsonl"), "dta.jsonl", "Did you mean data.jsonl"),
    wrong(recover("a/b/c"), "a/b/c", "does not exist", "no folder a/b"),
    wrong(oneshot("l.jsonl"), "l.jsonl", "does not exist", prepare=linked("l.jsonl", "nowhere.jsonl")),
    wrong(prune("''"), "--data is empty", "Give it a value"),
    wrong(prune("README"), "README", ".jsonl", "Convert", prepare=written("README", "text")),
    wrong(oneshot("a.arrow"), "a.arrow", ".jsonl", "Convert", prepare=written("a.arrow", b"ARROW1")),
    wrong(criteria("a.jsonl.bz2"), "a.jsonl.bz2", ".jsonl", "Convert", prepare=written("a.jsonl.bz2", b"BZh")),
)

NAMED = (
    wrong(prune("gone.jsonl:0.5 data.jsonl:1"), "gone.jsonl does not exist"),
    wrong(oneshot("'*.csv'"), "No data file matches *.csv", "Check"),
    wrong(recover("'mod*'"), "No data file matches mod*", "matches model, which", ".jsonl"),
    wrong(prune("data.jsonl:x"), "weight of data.jsonl", "'x'", "above 0"),
    wrong(criteria("data.jsonl:-1 b.jsonl:2"), "weight of data.jsonl is -1", prepare=rows("b.jsonl", {"text": "b"})),
    wrong(prune("data.jsonl:0.5 b.jsonl"), "b.jsonl has no weight", "NAME:WEIGHT", prepare=rows("b.jsonl", {})),
    wrong(oneshot("data.jsonl '*.jsonl'"), "data.jsonl is named twice", "Name it once"),
    wrong(prune("data.jsonl:nan"), "weight of data.jsonl is nan", "above 0"),
    wrong(
        held_out("data.jsonl pairs.jsonl"),
        *("data.jsonl has the columns text", "pairs.jsonl has prompt, completion", "--columns"),
        prepare=rows("pairs.jsonl", {"prompt": "a", "completion": "b"}),
    ),
    wrong(
        prune("data.jsonl:1 numbers.jsonl:1"),
        *("the column 'text'", "string in data.jsonl", "int64 in numbers.jsonl"),
        prepare=rows("numbers.jsonl", {"text": 5}),
    ),
    wrong(recover("data.jsonl --columns text=body"), "no column 'body'", "Its columns are text"),
    wrong(oneshot("data.jsonl --columns text"), "'text' is not a pair", "prompt=question"),
    wrong("prune model --data data.jsonl --streaming -o out", "--streaming", "--max-steps"),
    wrong(
        prune("data.jsonl:1 b.jsonl:1 --stopping-strategy all_exhausted"),
        *("repeats rows", "--eval-data", "--eval-sequences 0"),
        prepare=rows("b.jsonl", {"text": "b"}),
    ),
)

DAMAGED = (
    wrong(prune("a.jsonl"), "a.jsonl", "UTF-8", "Convert", prepare=written("a.jsonl", b"\x00\xff\xfe")),
    wrong(oneshot("a.txt"), "a.txt", "UTF-8", "Convert", prepare=written("a.txt", "text".encode("utf-16"))),
    wrong(recover("a.jsonl"), "a.jsonl", "empty", "Give", prepare=written("a.jsonl", "")),
    wrong(criteria("a.txt"), "a.txt", "empty", "Give", prepare=written("a.txt", "\n\n")),
    wrong(prune("a.json"), "a.json", "line 1", "not valid JSON", prepare=written("a.json", "")),
    wrong(prune("a.jsonl"), "a.jsonl, line 2", "one complete", prepare=written("a.jsonl", '{"text": "a"}\n{"a": \n')),
    wrong(oneshot("a.jsonl"), "a.jsonl, line 1", "nested", prepare=written("a.jsonl", NESTED)),
    wrong(criteria("a.json"), "a.json", "nested", prepare=written("a.json", NESTED)),
    wrong(recover("a.jsonl"), "a.jsonl, line 1", "must end in .json", prepare=rows("a.jsonl", [1, 2])),
    wrong(prune("a.json"), "a.json", "list of objects", prepare=written("a.json", '"text"')),
    wrong(held_out("a.parquet"), "a.parquet", "Parquet", prepare=written("a.parquet", b"PAR1xxPAR1")),
    wrong(prune("a.parquet"), "a.parquet", "Parquet", prepare=written("a.parquet", b"")),
    wrong(oneshot("a.csv"), "a.csv", "line 2", "CSV", prepare=written("a.csv", 'text\n"abc\n')),
    wrong(prune("a.csv"), "a.csv, line 2", "double quotes", prepare=written("a.csv", "text\na,b\n")),
)

ROWS = (
    wrong(prune("a.jsonl"), "foo", "text", "Rename", prepare=rows("a.jsonl", {"foo": 1})),
    wrong(criteria("a.jsonl"), "Row 1", "text", prepare=rows("a.jsonl", {"text": 5})),
    wrong(oneshot("a.jsonl"), "nothing to train on", "Give", prepare=rows("a.jsonl", {"text": ""})),
    wrong(prune("a.jsonl"), "nothing to train on", "Give", prepare=rows("a.jsonl", {"prompt": "a", "completion": ""})),
    wrong(recover("a.jsonl"), "Row 2", "text", prepare=rows("a.jsonl", {"text": "a b c"}, {"text": [1]})),
    wrong(prune("a.jsonl"), "Row 1", prepare=rows("a.jsonl", {"messages": "hello"})),
    wrong(
        criteria("a.jsonl"),
        "Row 1",
        "robot",
        prepare=rows("a.jsonl", {"messages": [ROBOT]}),
    ),
    wrong(
        prune("mixed"),
        *("mixed", "a.jsonl", "b.jsonl", "Give one file"),
        prepare=both(rows("mixed/a.jsonl", {"text": "a"}), rows("mixed/b.jsonl", {"prompt": "a", "completion": "b"})),
    ),
    wrong(
        oneshot("a.jsonl"),
        *("Every answer", "--max-length", "--no-answers-only"),
        prepare=rows("a.jsonl", {"prompt": "long " * 40, "completion": "b"}),
    ),
    wrong(prune("some --split test[:10]"), "test[:10]", "Name the whole", prepare=rows("some/a.jsonl", {"text": "a"})),
    wrong("prune model --data data.jsonl --max-length 1 -o out", "max", "1"),
    wrong(f"prune sorter --data data.jsonl {OPTIONS}", "label", prepare=classifier),
    wrong("eval sorter --data data.jsonl", "label", prepare=classifier),
    wrong("eval sorter --data f.jsonl", "f.jsonl", "not a regular file", prepare=both(classifier, fifo("f.jsonl"))),
    wrong("eval sorter --data a.jsonl", "a.jsonl, line 1", "JSON", prepare=both(classifier, written("a.jsonl", "{"))),
    wrong("eval model --data data.jsonl", "--data", "--ppl"),
)

PERPLEXITY = (
    wrong("eval model --ppl pipe.txt", "pipe.txt", "neither a file", prepare=fifo("pipe.txt")),
    wrong("eval model --ppl wikitext2=pipe.txt", "pipe.txt", "does not exist", prepare=fifo("pipe.txt")),
    wrong("eval model --ppl /dev/zero", "/dev/zero", "neither a file"),
    wrong("eval model --ppl folder", "folder", "not a text", prepare=folder_at("folder")),
    wrong("eval model --ppl gone.txt", "gone.txt", "neither a file"),
    wrong("eval model --ppl wikitext", "Did you mean 'wikitext2'"),
    wrong("eval model --ppl a.txt", "a.txt", "UTF-8", prepare=written("a.txt", b"\xff\xfe")),
    wrong("eval model --ppl a.txt", "a.txt", "empty", prepare=written("a.txt", " \n")),
    wrong("eval model --ppl a.jsonl", "a.jsonl, line 1", "JSON", "Correct", prepare=written("a.jsonl", NESTED)),
    wrong("eval model --ppl a.jsonl", "a.jsonl, line 1", "'text'", prepare=rows("a.jsonl", {"foo": 1})),
    wrong("eval model --ppl a.txt", "token", prepare=written("a.txt", "a")),
    wrong("eval model --ppl data.jsonl data.jsonl", "data.jsonl", "NAME=FILE"),
)

TASKS = (
    wrong("eval model --tasks pipe.jsonl", "pipe.jsonl", "not a regular file", prepare=fifo("pipe.jsonl")),
    wrong("eval model --tasks ./gone.jsonl", "gone.jsonl", "There is no task file"),
    wrong("eval model --tasks data.jsonl", "data.jsonl, line 1", "'query'"),
    wrong("eval model --tasks a.jsonl", "a.jsonl", "UTF-8", prepare=written("a.jsonl", b"\xff\xfe")),
    wrong("eval model --tasks a.jsonl", "a.jsonl", "no items", prepare=written("a.jsonl", "")),
    wrong("eval model --tasks a.jsonl", "a.jsonl, line 1", "JSON", "reads like", prepare=written("a.jsonl", NESTED)),
    wrong(
        "eval model --tasks a.jsonl",
        "line 2",
        "form",
        prepare=rows("a.jsonl", ITEM, OTHER),
    ),
    wrong("eval model --tasks a.jsonl", "line 1", "'gold'", "0 to 1", prepare=rows("a.jsonl", ITEM | {"gold": 7})),
    wrong("eval model --tasks a.txt", "a.txt", ".jsonl", prepare=written("a.txt", "a")),
    wrong("eval model --tasks ./folder", "folder", "MMLU", prepare=folder_at("folder")),
    wrong("eval model --tasks a_test.csv --num-fewshot 0", "a_test.csv", "csv", prepare=written("a_test.csv", b"\xff")),
    wrong("eval model --tasks a.jsonl --num-fewshot 5", "a.jsonl", "--num-fewshot", prepare=rows("a.jsonl", ITEM)),
    wrong("eval model --tasks ./a.parquet", "a.parquet", ".jsonl", prepare=written("a.parquet", b"PAR1")),
)

PROMPTS = (
    wrong("eval model --prompts pipe.txt", "pipe.txt", "not a file of prompts", prepare=fifo("pipe.txt")),
    wrong("eval model --prompts /dev/null", "/dev/null", "not a file of prompts"),
    wrong("eval model --prompts ./folder", "folder", "not a file of prompts", prepare=folder_at("folder")),
    wrong("eval model --prompts gone.jsonl", "gone.jsonl", "No such file"),
    wrong("eval model --prompts a.txt", "a.txt", "UTF-8", prepare=written("a.txt", b"\xff\xfe")),
    wrong("eval model --prompts a.txt", "a.txt", "no prompts", prepare=written("a.txt", "\n")),
    wrong("eval model --prompts ''", "--prompts is empty", "Give it a value"),
)

UNKNOWN_TOKENS = (
    wrong("eval model --prompts '<new> one'", "token 261", "knows 261", "--tokenizer", prepare=with_added_token),
    wrong(
        "eval model --tasks a.jsonl",
        *("a.jsonl", "token 261", "--tokenizer"),
        prepare=both(with_added_token, rows("a.jsonl", ITEM | {"query": "<new> is"})),
    ),
    wrong(
        "eval model --ppl a.txt",
        *("a.txt", "token 261", "--tokenizer"),
        prepare=both(with_added_token, written("a.txt", "<new> " * 100)),
    ),
    wrong(
        prune("a.jsonl"),
        *("token 261", "the model knows 261"),
        prepare=both(with_added_token, rows("a.jsonl", {"text": "<new> " * 100})),
    ),
)

TABLE: tuple[Wrong, ...] = (*NO_FILES, *NAMED, *DAMAGED, *ROWS, *PERPLEXITY, *TASKS, *PROMPTS, *UNKNOWN_TOKENS)
