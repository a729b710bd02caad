"""pass@k: several sampled programs per row, each run against the row's tests in the sandbox."""

from __future__ import annotations

from collections.abc import Sequence

from pipestill.evaluation.code_execution import assemble, run_program
from pipestill.evaluation.code_metrics import pass_at_k
from pipestill.models.student import Student, padded
from pipestill.records import Example

KS = (1, 5, 10, 100)


def sampled_pass_at_k(
    student: Student,
    rows: Sequence[Example],
    inputs: Sequence[str],
    *,
    samples: int,
    temperature: float = 0.8,
    max_new_tokens: int = 256,
    seed: int = 0,
    timeout_s: float = 5.0,
    memory_mb: int = 512,
) -> dict[str, float]:
    """Samples answers, runs them, and estimates pass@k over the rows that bring tests.

    Chen et al. 2021 (arXiv 2107.03374, section 3.3) find a temperature of 0.8 best for pass@100
    and 0.2 for pass@1.

    Args:
        student: the model.
        rows: with tests; one without is left out.
        inputs: what the model reads, one a row.
        samples: n, programs per row.
        temperature: of the sampling, above 0.
        max_new_tokens: most tokens of one program.
        seed: of the sampling; the same seed gives the same programs.
        timeout_s: wall-clock time of one program.
        memory_mb: address space of one program.

    Returns:
        ``"1"``, ``"5"``, ``"10"``, ``"100"``, as far as `samples` goes → pass@k, from 0 to 1;
        empty where no row has tests.
    """
    from tqdm import tqdm

    tested = [(row, text) for row, text in zip(rows, inputs, strict=True) if row.tests]
    found: dict[str, float] = {}
    passed = []
    for at, (row, text) in enumerate(tqdm(tested, desc="pass@k", disable=None, leave=False)):
        programs = sampled(student, text, samples, temperature, max_new_tokens, seed + at)
        outcomes = {
            program: run_program(
                assemble(row.input_text, program, row.tests or ""),
                timeout_s=timeout_s,
                memory_mb=memory_mb,
            ).passed
            for program in set(programs)  # the same program passes again, or fails again
        }
        passed.append(sum(outcomes[program] for program in programs))
    for k in KS:
        if k <= samples and passed:
            found[str(k)] = sum(pass_at_k(samples, right, k) for right in passed) / len(passed)
    return found


def sampled(
    student: Student, text: str, samples: int, temperature: float, max_new_tokens: int, seed: int
) -> list[str]:
    """Independent answers to one input, from the whole distribution at a temperature."""
    import torch

    model, tokenizer = student.loaded.model, student.renderer.tokenizer
    left = not student.loaded.is_encoder_decoder
    (prompt,) = student.renderer.prompts("predict", [text])
    ids, mask = padded([prompt.ids], tokenizer.pad_token_id, left=left)
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            num_return_sequences=samples,
            max_new_tokens=min(max_new_tokens, student.renderer.max_output_tokens),
        )
    output = output[:, ids.shape[1] :] if left else output[:, 1:]
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [one.strip() for one in texts]
