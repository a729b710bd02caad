"""One iteration of policy optimisation against its peers, as ratios: ``python -m benchmarks.rlhf``.

All systems start from the same weights and prompts, in fp32 with one thread, each in a process of
its own; they take turns. A line is the median of the rounds' ratios of CPU time a sampled token
(peer over ours, above 1: ours is faster), with their range. An iteration is the rollout, its
scoring and the updates. Compared are

- PPO, four epochs, a reward model of the policy's size: a plain implementation with HF's
  ``generate``, a copy as reference and a critic of its own; and the same with the value head on the
  policy's trunk. For a Llama shape with one answer a prompt, and a T5 shape with four. Answers end
  by chance after about 30 of at most 64 tokens;
- GRPO and RLOO, one update, four answers a prompt of 64 tokens: TRL's trainers on the Llama shape,
  at their defaults in fp32, and with gradient checkpointing off. TRL runs in the interpreter that
  ``--peer-python`` names.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

PEERS = Path(__file__).with_name("rlhf_peers.py")
VOCABULARY = 32_000
MODELS = {
    "llama": {
        "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 704,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "tie_word_embeddings": True, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "t5": {
        "vocab_size": VOCABULARY, "d_model": 256, "d_kv": 64, "d_ff": 704, "num_layers": 4,
        "num_decoder_layers": 4, "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0,
        "eos_token_id": 2, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0,
    },
}  # fmt: skip
# peer system and mode, our mode, what it is called, target
LINES = [
    (("plain", "ppo_llama_ends"), "ppo_llama_ends", "PPO, Llama: plain", 1.5),
    (("plain", "shared_llama_ends"), "ppo_llama_ends", "PPO, Llama: plain, shared trunk", None),
    (("plain", "ppo_t5_ends"), "ppo_t5_ends", "PPO, T5: plain", 1.5),
    (("plain", "shared_t5_ends"), "ppo_t5_ends", "PPO, T5: plain, shared trunk", None),
    (("trl", "grpo_llama"), "grpo_llama", "GRPO, Llama: TRL", None),
    (("trl", "grpo_llama_best"), "grpo_llama", "GRPO, Llama: TRL without checkpointing", None),
    (("trl", "rloo_llama"), "rloo_llama", "RLOO, Llama: TRL", None),
    (("trl", "rloo_llama_best"), "rloo_llama", "RLOO, Llama: TRL without checkpointing", None),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of every system")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has TRL")
    parser.add_argument("--only", default="", help="ppo, grpo or rloo: lines of one objective")
    given = parser.parse_args()
    began = time.perf_counter()
    lines = [line for line in LINES if line[1].startswith(given.only)]
    with tempfile.TemporaryDirectory() as folder:
        write_spec(Path(folder))
        systems = {"ours", *(peer[0] for peer, *_ in lines)}
        workers = started(systems, Path(folder), given.peer_python)
        lines = [line for line in lines if line[0][0] in workers]
        keys = sorted({("ours", own) for _, own, *_ in lines} | {peer for peer, *_ in lines})
        try:
            results = measured(workers, keys, given.rounds)
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()
    for peer, own, name, target in lines:
        ratios = sorted(
            (theirs["cpu"] / theirs["tokens"]) / (ours["cpu"] / ours["tokens"])
            for theirs, ours in zip(results[peer], results["ours", own], strict=True)
        )
        wanted = f", target {target}" if target else ""
        print(f"{median(ratios):5.2f}x  {name}  [{ratios[0]:.2f} to {ratios[-1]:.2f}]{wanted}")
    for key, found in results.items():
        cpu, tokens = (median(each[name] for each in found) for name in ("cpu", "tokens"))
        print(f"  {key[0]} {key[1]}: {cpu:.2f} CPU s, {tokens:.0f} tokens")
    print(f"{time.perf_counter() - began:.0f} s in all")


def write_spec(folder: Path) -> None:
    dice = random.Random(0)  # noqa: S311
    prompts = [
        [dice.randrange(3, VOCABULARY) for _ in range(dice.randint(16, 64))] for _ in range(512)
    ]
    ends = list(range(2, 2 + VOCABULARY // 40))  # one token of 40 ends an answer
    spec = {
        "models": MODELS, "prompts": prompts, "answers": 32, "limit": 64, "epochs": 4, "eos": 2,
        "ends": ends, "samples": {"llama": 1, "t5": 4, "group": 4},
        "scratch": str(folder / "scratch"),
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec))


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


def measured(
    workers: dict[str, Any], keys: list[tuple[str, str]], rounds: int
) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Every system in every round, in an order that turns; the first round warms up."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in keys}
    for seed in range(rounds + 1):
        for key in keys[seed % len(keys) :] + keys[: seed % len(keys)]:
            worker = workers[key[0]]
            print(key[1], seed, file=worker.stdin, flush=True)
            # Trainers print their own figures, too.
            line = next((text for text in worker.stdout if text.startswith('{"cpu"')), "")
            if not line:
                raise SystemExit(f"{key[0]}, {key[1]}: the process has ended")
            if seed:
                found[key].append(json.loads(line))
    return found


if __name__ == "__main__":
    main()
