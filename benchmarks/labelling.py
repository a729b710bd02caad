"""What the shared prefix saves: CPU time of labelling with and without it.

    python -m benchmarks.labelling

Both runs give the same rows to the same model through the same code; only the prefix's cache is
switched off in one of them. CPU time of this process is measured, because it hardly depends on what
else the machine does. Runs in well under a minute.
"""

import argparse
import contextlib
import io
import time
from tempfile import TemporaryDirectory

import torch

from pipestill import pocket
from pipestill.config import TeacherConfig
from pipestill.errors import PipestillError
from pipestill.generation import transformers_backend
from pipestill.generation.ask import Answer, ask
from pipestill.records import Example, read_jsonl

RANDOM_ROWS, RANDOM_PREFIX, RANDOM_QUERY, RANDOM_NEW = 64, 768, 64, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=192, help="rows to label (default 192)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pocket_speed_up(given.rows)
    random_speed_up()


def pocket_speed_up(count: int) -> None:
    """The shipped teacher on its own task, by the code path of the pipeline."""
    folder = pocket.POCKET["pocket-teacher"]
    if not folder.is_dir():
        print("pocket teacher: not built, skipped")
        return
    rows = list(read_jsonl(pocket.DATA_DIR / "eval.jsonl", Example))[:count]
    config = TeacherConfig()
    timed(rows[:4], config, shared=True)  # warm-up
    plain, plain_s = timed(rows, config, shared=False)
    shared, shared_s = timed(rows, config, shared=True)
    report(
        f"pocket teacher, {len(rows)} rows, {config.shots} shots", plain, plain_s, shared, shared_s
    )


def timed(
    rows: list[Example], config: TeacherConfig, *, shared: bool
) -> tuple[list[Answer], float]:
    """Answers, and CPU seconds without the loading of the model (which both runs need)."""
    least = transformers_backend.LEAST_SHARED_TOKENS
    transformers_backend.LEAST_SHARED_TOKENS = least if shared else 1 << 60
    loaded = transformers_backend.load(config.model_reference)
    load = transformers_backend.load
    transformers_backend.load = lambda *_, **__: loaded
    try:
        with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            began = time.process_time()
            answers = ask(rows, config=config, state_dir=folder, samples=1, shots=config.shots)
            return answers, time.process_time() - began
    finally:
        transformers_backend.load = load
        transformers_backend.LEAST_SHARED_TOKENS = least


def random_speed_up() -> None:
    """A random Llama of about the pocket teacher's size at a long prompt; no text, only ids."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipestill.generation.decoding import Rules, compute_prefix, decode_batch

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    prefix_ids = torch.randint(3, 2048, (RANDOM_PREFIX,)).tolist()
    prompts = [
        prefix_ids + torch.randint(3, 2048, (RANDOM_QUERY,)).tolist() for _ in range(RANDOM_ROWS)
    ]
    rules = Rules(max_new_tokens=RANDOM_NEW, end_ids=frozenset(), stopped=lambda ids: False)
    found, seconds = [], []
    for shared in (False, True):
        began = time.process_time()
        prefix = compute_prefix(model, prefix_ids) if shared else None
        rows = []
        for start in range(0, RANDOM_ROWS, 32):
            part = prompts[start : start + 32]
            rows += decode_batch(model, part, rules, seeds=[0] * len(part), prefix=prefix)
        seconds.append(time.process_time() - began)
        found.append(rows)
    whole = RANDOM_ROWS * (RANDOM_PREFIX + RANDOM_QUERY)
    print(
        f"random Llama, {RANDOM_ROWS} rows, prefix {RANDOM_PREFIX}, query {RANDOM_QUERY}, "
        f"{RANDOM_NEW} new tokens: {seconds[0]:.2f} s → {seconds[1]:.2f} s"
    )
    summary(seconds[0], seconds[1], whole, RANDOM_PREFIX + RANDOM_ROWS * RANDOM_QUERY, found)


def report(
    what: str, plain: list[Answer], plain_s: float, shared: list[Answer], shared_s: float
) -> None:
    new = sum(answer.output_tokens for answer in shared)
    before = sum(answer.prompt_tokens for answer in plain)
    prefix = max(answer.cached_prompt_tokens for answer in shared)
    after = sum(a.prompt_tokens - a.cached_prompt_tokens for a in shared) + prefix
    print(f"{what}, {new} new tokens: {plain_s:.2f} s → {shared_s:.2f} s")
    texts = [[answer.raw for answer in answers] for answers in (plain, shared)]
    summary(plain_s, shared_s, before, after, texts)


def summary(plain_s: float, shared_s: float, before: int, after: int, outputs: list) -> None:
    same = "yes" if outputs[0] == outputs[1] else "NO"
    print(
        f"shared-prefix speed-up: {plain_s / shared_s:.1f}× CPU time "
        f"(prefill tokens {before}→{after}), outputs identical: {same}"
    )


if __name__ == "__main__":
    try:
        main()
    except PipestillError as error:
        raise SystemExit(f"error: {error}") from error
