"""Training against its peers, as ratios: ``python -m benchmarks.training``.

All systems train the same rows from the same first weights in fp32 with one thread, AdamW and
gradient clipping included, each in a process of its own; they take turns, in an order that turns
round every time, and every round draws other rows. A line is the median of the rounds' ratios, with
their range. CPU time of the process is measured, because it depends little on what else the machine
does. Compared are

- HF's `Seq2SeqTrainer` on a T5 shape with T5's vocabulary: batches in random order, each padded to
  its own longest row; CommonsenseQA rows with recorded explanations where the data is at hand
  (folder `PIPESTILL_SHARED`), else made-up rows of such lengths;
- TRL's `SFTTrainer` on a Llama shape: its defaults in fp32, and as fast as it can be made here
  (no gradient checkpointing, and the LM head at positions with loss only, which TRL does on GPUs
  alone); dialogues of which the last answer is trained. TRL runs in the interpreter that
  ``--peer-python`` names;
- the two-pass step of distilling step-by-step, as the paper's code does it; and this library's,
  with all rationales of a step and with a quarter of them (`Job.rationale_fraction`, which changes
  no expected gradient), against label-only fine-tuning for the same examples;
- the LM head with cross-entropy over a vocabulary of 32k, in memory.

Takes about seven minutes of one core, half of it in the peers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.training_data import chat_rows, question_rows

PEERS = Path(__file__).with_name("training_peers.py")
T5 = {
    "vocab_size": 32128, "d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 4,
    "num_decoder_layers": 4, "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
LLAMA = {
    "vocab_size": 50304, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 50256,
}  # fmt: skip
# Of T5's tokenizer: "predict:" and "explain:"
PREFIXES = {"label": [9689, 10], "rationale": [3209, 10]}
QUESTIONS, CHATS = 1024, 256  # rows to draw from
STEPS = {"t5": 2, "llama": 2}  # of one measurement

# system, mode → what it is called
RUNS = {
    ("ours", "label"): "ours, labels",
    ("ours", "both"): "ours, labels and rationales (DSS)",
    ("ours", "both@0.25"): "ours, DSS with a quarter of the rationales a step",
    ("hf", "label"): "HF Seq2SeqTrainer, labels",
    ("hf", "both"): "HF Seq2SeqTrainer, labels and rationales",
    ("two_passes", "both"): "two-pass DSS",
    ("ours", "chat"): "ours, chat",
    ("ours", "chat_checkpointed"): "ours with gradient checkpointing, chat",
    ("trl", "chat"): "TRL SFTTrainer, chat",
    ("trl", "chat_best"): "TRL SFTTrainer without checkpointing, head as on a GPU, chat",
}
# numerator and denominator of loss tokens a CPU-second, and the target of the ratio
SPEED = [
    (("ours", "both"), ("hf", "both"), 1.7),
    (("ours", "label"), ("hf", "label"), None),
    (("ours", "both"), ("two_passes", "both"), None),
    (("ours", "chat"), ("trl", "chat"), 1.3),
    (("ours", "chat"), ("trl", "chat_best"), None),
    (("ours", "chat_checkpointed"), ("trl", "chat"), None),
]
# CPU seconds for the same number of examples
COST = [
    (("ours", "both"), ("ours", "label"), 1.3),
    (("ours", "both"), ("hf", "label"), None),
    (("two_passes", "both"), ("hf", "label"), None),
    (("ours", "both@0.25"), ("ours", "label"), None),
    (("ours", "both@0.25"), ("hf", "label"), None),
]
Key = tuple[str, str]
Results = dict[Key, list[dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of every system")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has TRL")
    parser.add_argument("--only", default="", help="t5 or llama: one part alone")
    given = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        what = write_spec(Path(folder))
        keys = [key for key in RUNS if given.only in ("", "llama" if "chat" in key[1] else "t5")]
        workers = started({key[0] for key in keys}, Path(folder), given.peer_python)
        try:
            results = measured(workers, keys, given.rounds)
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()
    report(results, what)
    if not given.only:
        report_head(given.rounds)
    print(f"{time.perf_counter() - began:.0f} s in all")


def write_spec(folder: Path) -> str:
    """Rows and models for the workers; returns what the rows are."""
    questions, of_questions = question_rows(QUESTIONS)
    chats, of_chats = chat_rows(CHATS)
    spec = {
        "models": {"t5": T5, "llama": LLAMA},
        "rows": {"t5": questions, "llama": chats},
        "batch": {"t5": 32, "llama": 8},  # examples a step; 8 is TRL's default
        "prefixes": PREFIXES,
        "scratch": str(folder / "scratch"),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return f"{of_questions}; {of_chats}"


def started(systems: set[str], folder: Path, peer_python: str) -> dict[str, Any]:
    """A process for every system that can run here."""
    workers = {}
    for system in sorted(systems):
        python = peer_python if system == "trl" else sys.executable
        worker = subprocess.Popen(  # noqa: S603
            [python, str(PEERS), system, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{system}.log").open("w"),
            text=True,
        )
        if worker.stdout and worker.stdout.readline().strip() == "ready":
            workers[system] = worker
        else:
            log = (folder / f"{system}.log").read_text().strip().splitlines() or ["no message"]
            print(f"{system}: skipped, it does not start in {python} ({log[-1]})")
    return workers


def measured(workers: dict[str, Any], keys: Sequence[Key], rounds: int) -> Results:
    """Results of every run, round by round; a first round of one step warms the processes up."""
    keys = [key for key in keys if key[0] in workers]
    results: Results = {key: [] for key in keys}
    for number in range(rounds + 1):
        for key in keys if number % 2 else reversed(keys):
            steps = STEPS["llama" if "chat" in key[1] else "t5"] if number else 1
            found = asked(workers[key[0]], f"{key[1]} {number} {steps}")
            if number:
                results[key].append(found)
        print(f"round {number} of {rounds} done", file=sys.stderr, flush=True)
    return results


def asked(worker: Any, order: str) -> dict[str, float]:
    worker.stdin.write(order + "\n")
    worker.stdin.flush()
    while line := worker.stdout.readline():
        if line.startswith('{"cpu"'):  # trainers print as well
            found: dict[str, float] = json.loads(line)
            return found
    raise SystemExit(f"a worker stopped at {order!r}: run it by itself to see why")


def report(results: Results, what: str) -> None:
    print(f"rows: {what}; one thread, fp32")
    for key, found in results.items():
        spent = median(one["cpu"] for one in found)
        rate = median(one["tokens"] / one["cpu"] for one in found)
        peak = median(one["peak"] for one in found) / 2**20
        print(f"  {RUNS[key]}: {rate:.1f} loss tokens/s, {spent:.2f} s, peak {peak:.0f} MiB")
    print("loss tokens a CPU-second")
    for over, under, target in SPEED:
        compare(results, over, under, lambda one: one["tokens"] / one["cpu"], target)
    print("CPU time an example")
    for over, under, target in COST:
        compare(results, over, under, lambda one: one["cpu"], target)
    print("peak memory")
    for over, under, _ in SPEED:
        compare(results, over, under, lambda one: one["peak"], None)


def compare(
    results: Results,
    over: Key,
    under: Key,
    value: Callable[[dict[str, float]], float],
    target: float | None,
) -> None:
    if over not in results or under not in results:
        return
    pairs = zip(results[over], results[under], strict=True)
    line(f"{RUNS[over]} / {RUNS[under]}", [value(a) / value(b) for a, b in pairs], target)


def line(name: str, ratios: list[float], target: float | None) -> None:
    goal = f", target {target}" if target else ""
    low, high = min(ratios), max(ratios)
    print(f"  {name}: {median(ratios):.2f} ({low:.2f} to {high:.2f}, n={len(ratios)}{goal})")


def report_head(rounds: int) -> None:
    """Peak memory of LM head and cross-entropy, forward and backward: 4,096 states, 32k words."""
    print("LM head and cross-entropy, 4,096 states, 32,768 words")
    peaks = {name: head_peaks(name, rounds) for name in ("chunked", "naive")}
    for name, found in peaks.items():
        print(f"  {name}: peak {median(found) / 2**20:.0f} MiB")
    ratios = [a / b for a, b in zip(peaks["chunked"], peaks["naive"], strict=True)]
    line("chunked / naive", ratios, 0.5)


def head_peaks(name: str, rounds: int) -> list[int]:
    """Bytes that a process of its own took beyond its states and weights, one value a round."""
    code = f"from benchmarks.training import head_steps; head_steps({name!r}, {rounds})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    return [int(value) for value in done.stdout.split()]


def head_steps(name: str, rounds: int) -> None:
    import torch

    from benchmarks.training_peers import measured as measured_once
    from pipestill.losses.common import head_nll, rows_per_chunk

    torch.set_num_threads(1)
    states = torch.randn(4096, 256, requires_grad=True)
    weight = torch.randn(32_768, 256, requires_grad=True)
    labels = torch.randint(32_768, (4096,))
    rows = rows_per_chunk(32_768)

    def step() -> int:
        states.grad = weight.grad = None
        if name == "chunked":
            head_nll(lambda part: part @ weight.T, states, labels, rows).mean().backward()
        else:
            torch.nn.functional.cross_entropy(states @ weight.T, labels).backward()
        states.grad = weight.grad = None
        return len(states)

    for _ in range(rounds):
        print(int(measured_once(step)["peak"]))


if __name__ == "__main__":
    main()
