"""Kill commands at random moments, start them again, and see that nothing is lost and nothing stays.

    python scripts/kill_runs.py --rounds 20 --kind KILL --command prune

Each round starts a command on a tiny model, kills it several times, starts it again (with ``--resume`` where
there is a state) and lets it end. The result has to be that of a run that was never stopped, bit for
bit: every file but for times and pictures of them. In every second round an older result stands at the output, and has
to be there, whole, until the new one takes its place. Prints a tally; the exit code is 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from loraprune.cli.main import main as loraprune
from loraprune.data.demo import demo_model
from loraprune.pruning.resume import last_checkpoint
from loraprune.recipes.steps.oneshot_state import ONESHOT_RUN_FILE

TRAINING = [
    *("--data=texts.jsonl", "--max-length=32", "--per-device-train-batch-size=2", "--eval-sequences=4", "-q"),
    # A logged loss is the mean since the last log or since the start: where each step is logged, a stop changes none.
    *("--max-steps=12", "--save-steps=2", "--logging-steps=1"),
]
PRUNE = [*TRAINING, "--calibration-sequences=8", "--no-latency"]
ONESHOT = ["--criterion=magnitude", "-q"]
BY_BLOCK = [
    *("--data=texts.jsonl", "--max-length=32", "--calibration-sequences=16", "--eval-sequences=4"),
    *("--cuts=2", "--allocation=balanced", "--no-latency", "-q"),
]
TIMES = {"created", "seconds", "phases", "command", "latency_ms", "tokens_per_second"}
"""Keys of pruning.json that differ between two runs of one command."""
PICTURED = {"report.html", "report.json", "README.md"}
"""Files that show times, and the command."""
STOPPED = {"KILL": -signal.SIGKILL, "TERM": 128 + signal.SIGTERM, "INT": 128 + signal.SIGINT}
"""What a process that was stopped returns."""


@dataclass(frozen=True)
class Command:
    """A command under test: its arguments, those of the older result that it replaces, and where it writes."""

    arguments: list[str]
    older: list[str]
    output: str = "out"
    resumes: bool = False


COMMANDS = {
    "prune": Command(["prune", "model", *PRUNE], ["prune", "model", *PRUNE, "--ratio=0.25"], resumes=True),
    "recover": Command(["recover", "sparse", *TRAINING], ["recover", "sparse", *TRAINING, "--seed=7"], resumes=True),
    "oneshot": Command(
        ["oneshot", "model", *ONESHOT, "--sparsity=0.5"], ["oneshot", "model", *ONESHOT, "--sparsity=0.25"]
    ),
    "oneshot-by-block": Command(
        ["oneshot", "model", *BY_BLOCK, "--ratio=0.5"], ["oneshot", "model", *BY_BLOCK, "--ratio=0.25"], resumes=True
    ),
    "export": Command(
        ["export", "model", "--format=gguf", "--pre-tokenizer=qwen2"],
        ["export", "model", "--format=gguf", "--pre-tokenizer=qwen2", "--outtype=f32"],
        output="out.gguf",
    ),
}


class WrongError(Exception):
    """A run that was killed did harm."""


def make_inputs(folder: Path) -> None:
    """A tiny model with the tokenizer of the bundled one, the same with zeros, and texts."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 4}
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **shape, **heads))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    texts = (f"def f{number}(x): return {' + '.join('x' * (2 + number % 7))} * {number}" for number in range(80))
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text("".join(lines), encoding="utf-8")


def start(arguments: list[str], folder: Path) -> int:
    """Run a command in a process of its own, which takes this one's imports over; returns the process."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets background jobs ignore it
        print("$ loraprune", *arguments, flush=True)
        code = loraprune(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(arguments: list[str], folder: Path, *, delay: float | None = None, kind: str = "KILL") -> int:
    """Run a command, stopped after ``delay`` seconds; returns its exit code, -9 of a killed one."""
    child = start(arguments, folder)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.Signals[f"SIG{kind}"])
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(output: Path) -> dict[str, str]:
    """What has to be equal in two results, as digests by the name of the file; empty where there is none."""
    if output.is_file():
        return {output.name: _digest(output.read_bytes())}
    found = {}
    for path in sorted(output.rglob("*")) if output.is_dir() else ():
        if path.name == "pruning.json":
            record = without_times(json.loads(path.read_text(encoding="utf-8")))
            found[path.name] = _digest(json.dumps(record, sort_keys=True).encode())
        elif path.is_file() and path.name not in PICTURED:
            found[str(path.relative_to(output))] = _digest(path.read_bytes())
    return found


def without_times(value: Any) -> Any:
    """A record without what differs between two runs of one command."""
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def has_state(folder: Path) -> bool:
    """Whether a run can be continued from a folder."""
    return folder.is_dir() and (last_checkpoint(folder) is not None or (folder / ONESHOT_RUN_FILE).is_file())


class Rounds:
    """Rounds of one command."""

    def __init__(self, folder: Path, command: Command, kind: str, randomness: random.Random) -> None:
        self.folder = folder
        self.command = command
        self.kind = kind
        self.random = randomness
        self.tally: Counter[str] = Counter()
        self.older = self._reference(command.older, "older")
        started = time.monotonic()
        self.wanted = self._reference(command.arguments, "wanted")
        self.seconds = time.monotonic() - started
        if self.wanted == self.older:
            raise WrongError("the older result is the same as the new one, so that these rounds would show nothing")

    def _reference(self, arguments: list[str], name: str) -> dict[str, str]:
        """The content of a result that was never stopped."""
        place = self._place(name)
        self._check_code(run([*arguments, "-o", self.command.output], place), 0, place)
        return content(place / self.command.output)

    def _place(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir()
        for source in ("model", "sparse", "texts.jsonl"):
            (place / source).symlink_to(self.folder / source)
        return place

    def round(self, number: int, kills: int) -> None:
        """Kill a command ``kills`` times at most, let it end, and compare.

        Raises:
            WrongError: something is lost or left.
        """
        place, over = self._place(f"round-{number}"), number % 2 == 1
        output = place / self.command.output
        if over:
            older = self.folder / "older" / self.command.output
            shutil.copytree(older, output) if older.is_dir() else shutil.copy(older, output)
        for _ in range(kills):
            delay = self.random.uniform(0.1, 1.05) * self.seconds
            code = run(self._arguments(output), place, delay=delay, kind=self.kind)
            if code == 0:
                self.tally["kills that came too late"] += 1
            else:
                self._check_code(code, STOPPED[self.kind], place)
                self.tally["kills"] += 1
            if self._look(output, over) or code == 0:
                break
        self._end(output, place)
        if content(output) != self.wanted:
            raise WrongError(f"{place}: another result than without kills: {self._different(output)}")
        allowed = {"model", "sparse", "texts.jsonl", "log", self.command.output}
        left = sorted(path.name for path in place.iterdir() if path.name not in allowed)
        if left:
            raise WrongError(f"{place}: left behind: {', '.join(left)}")
        self.tally["equal results"] += 1
        shutil.rmtree(place)

    def _look(self, output: Path, over: bool) -> bool:
        """See what a kill left; whether that is the result."""
        found = content(output)
        if found == self.wanted:
            self.tally["found the new result"] += 1
            return True
        if found != (self.older if over else {}):
            raise WrongError(f"{output}: neither the older result nor the new one: {self._different(output)}")
        saved = has_state(self._run_folder(output))
        self.tally["found a saved state" if saved else "found no state"] += 1
        return False

    def _end(self, output: Path, place: Path) -> None:
        """Start the command once more and let it end."""
        resumed = self._arguments(output)
        code = run(resumed, place)
        if code == 2 and "--resume" in resumed:  # the only state was being written
            self.tally["states that were of no use"] += 1
            code = run([*self._arguments(output, resume=False), "--overwrite"], place)
        self._check_code(code, 0, place)

    def _arguments(self, output: Path, *, resume: bool = True) -> list[str]:
        arguments = [*self.command.arguments, "-o", self.command.output]
        state = self._run_folder(output)
        going_on = resume and self.command.resumes and has_state(state)
        if output.exists():
            arguments.append("--overwrite")
        return [*arguments, "--resume"] if going_on else arguments

    @staticmethod
    def _run_folder(output: Path) -> Path:
        return output.with_name(f"{output.name}.run")

    def _different(self, output: Path) -> str:
        found = content(output)
        names = sorted(found.keys() | self.wanted.keys())
        return ", ".join(name for name in names if found.get(name) != self.wanted.get(name)) or "nothing"

    @staticmethod
    def _check_code(code: int, wanted: int, place: Path) -> None:
        if code != wanted:
            log = (place / "log").read_text(encoding="utf-8", errors="replace")
            raise WrongError(f"{place}: exit code {code} in place of {wanted}\n{log[-3000:]}")


@contextlib.contextmanager
def working_folder(kept: Path | None) -> Iterator[Path]:
    """The folder that was asked for, or one that vanishes."""
    if kept is not None:
        kept.mkdir(parents=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="kill-runs-") as scratch:
        yield Path(scratch).resolve()


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=20, help="of each command (default: 20)")
    parser.add_argument("--kills", type=int, default=3, help="at most, in a round (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--kind", choices=tuple(STOPPED), default="KILL", help="of signal (default: KILL)")
    parser.add_argument("--command", choices=tuple(COMMANDS), nargs="+", default=["prune"], help="default: prune")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder to work in, which stays")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    for module in ("prune", "oneshot", "recover"):
        import_module(f"loraprune.cli.{module}")
        import_module(f"loraprune.recipes.{module}")
    wrong = 0
    with working_folder(options.keep) as folder:
        make_inputs(folder)
        if run(["oneshot", "model", *ONESHOT, "--sparsity=0.5", "-o", "sparse"], folder):
            raise SystemExit((folder / "log").read_text(encoding="utf-8"))
        for name in options.command:
            (folder / name).mkdir()
            for source in ("model", "sparse", "texts.jsonl"):
                (folder / name / source).symlink_to(folder / source)
            rounds = Rounds(folder / name, COMMANDS[name], options.kind, random.Random(f"{options.seed} {name}"))
            print(f"{name}: a run that is not stopped takes {rounds.seconds:.1f} s", flush=True)
            for number in range(options.rounds):
                try:
                    rounds.round(number, options.kills)
                except WrongError as error:
                    wrong += 1
                    print(f"{name}, round {number}: {error}", flush=True)
            counts = ", ".join(f"{count} {what}" for what, count in sorted(rounds.tally.items()))
            print(f"{name}: {options.rounds} rounds, {counts}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
