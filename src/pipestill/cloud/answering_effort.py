"""What steps take in which a model answers: labels and reasons of the teacher, and evaluation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipestill.cloud.effort import (
    Estimate,
    generate,
    get,
    lengths,
    preference_lengths,
    prompt_of,
    spread,
)
from pipestill.cloud.machines import Machine
from pipestill.cloud.pipeline_steps import Step
from pipestill.cloud.prices import Range
from pipestill.cloud.workload import Workload
from pipestill.errors import UserError

API_TOKENS_A_SECOND = Range(20, 50, 120)  # of one stream of a paid service
REPLAYED_ROWS_A_SECOND = Range(200, 2_000, 10_000)


def _ask(step: Step, work: Workload, machine: Machine, rows: float, shots: int) -> Estimate:
    """A teacher's chain-of-thought answers to `rows` rows, by whatever backend the step names."""
    prompt, backend = prompt_of(step, work), get(step, work, "teacher_backend", "transformers")
    samples = max(1, int(get(step, work, "teacher_samples", 1)))
    calls = rows * samples
    if not prompt or not calls:
        return Estimate()
    if backend == "replay":
        return Estimate(
            rows=round(rows), calls=round(calls), seconds=REPLAYED_ROWS_A_SECOND.under(calls)
        )
    name = str(get(step, work, "teacher_model_reference"))
    try:
        prefix = work.mean_tokens(name, [prompt.prefix(shots)])
    except UserError as error:
        work.wrong(str(error))
        return Estimate()
    query = work.mean_tokens(name, [prompt.ask(text) for text in work.rows.inputs])
    written = _answer_tokens(step, work, prompt, name)
    if backend == "transformers":
        batch = float(get(step, work, "teacher_batch_size", 32))
        model = work.model(name)
        # the shared prefix is read once, and every row's own question after it
        answers = generate(machine, model, calls, query, written.likely, batch)
        attended = calls * model.decoder_pair / 3 * prefix * (query + written.likely)
        longer = machine.prefill_share.under(attended / machine.one_peak)
        found = answers + Estimate(flops=attended, seconds=longer)
        if not any(float(get(step, work, f"teacher_budget_{of}", 0)) for of in ("usd", "tokens")):
            found = spread(found, machine, calls / batch)
        return replace(found, rows=round(rows), calls=round(calls))
    return _paid(step, work, rows, calls, prefix + query, written)


def _paid(
    step: Step, work: Workload, rows: float, calls: float, read: float, written: Range
) -> Estimate:
    """Calls of a paid service; its cached prompt tokens count at the full price."""
    usd_in = float(get(step, work, "teacher_usd_per_million_input", 0.0))
    usd_out = float(get(step, work, "teacher_usd_per_million_output", 0.0))
    if not usd_in and not usd_out:
        work.say(
            "the teacher's price is 0 USD a token: set teacher_usd_per_million_input and _output"
        )
    cost = Range(0.9, 1.0, 1.15) * (calls * read * usd_in / 1e6) + written * (calls * usd_out / 1e6)
    streams = max(1, int(get(step, work, "teacher_concurrency", 8)))
    seconds = API_TOKENS_A_SECOND.under(calls * written.likely / streams)
    limit = float(get(step, work, "teacher_budget_usd", 0.0))
    tokens = int(get(step, work, "teacher_budget_tokens", 0))
    if limit and cost.likely > limit:
        work.wrong(
            f"{step.component}: the teacher is likely to cost {cost.likely:,.2f} USD, and "
            f"teacher_budget_usd stops it at {limit:,.2f} → raise it, or use fewer rows"
        )
    likely = calls * (read + written.likely)
    if tokens and likely > tokens:
        work.wrong(
            f"{step.component}: the teacher is likely to take {likely:,.0f} tokens, and "
            f"teacher_budget_tokens stops it at {tokens:,} → raise it, or use fewer rows"
        )
    return Estimate(
        rows=round(rows),
        tokens_in=round(calls * read),
        tokens_out=round(calls * written.likely),
        calls=round(calls),
        seconds=seconds,
        api=cost,
    )


def _answer_tokens(step: Step, work: Workload, prompt: Any, name: str) -> Range:
    """Tokens of an answer: as the worked examples are, at most what the step allows."""
    from pipestill.generation.prompts import fill

    texts = [
        fill(prompt.answer, {"rationale": item.rationale, "label": item.label})
        for item in prompt.examples
    ]
    most = float(get(step, work, "teacher_max_new_tokens", 96))
    likely = min(work.mean_tokens(name, texts) or most, most)
    return Range(likely * 0.6, likely, most)


def _share(step: Step) -> float:
    """The part of the rows that a step of a ``shard`` loop handles."""
    return 1.0 / step.loop_size if "shard" in step.arguments or step.loop_size > 1 else 1.0


def labelled(step: Step, work: Workload, machine: Machine) -> Estimate:
    """Rows without a label, and rows with one on which the teacher is measured."""
    return _ask(
        step, work, machine, _asked_first(step, work), int(get(step, work, "teacher_shots"))
    )


def _asked_first(step: Step, work: Workload) -> float:
    rows = work.rows
    gold = rows.train + rows.held_out - rows.unlabelled
    limit = int(get(step, work, "teacher_audit_rows", 200))
    return (rows.unlabelled + (gold if limit < 0 else min(limit, gold))) * _share(step)


def explained(step: Step, work: Workload, machine: Machine) -> Estimate:
    """All training rows, without those whose answer the labelling step left in the journal."""
    rows = work.rows
    gold = max(1, rows.train + rows.held_out - rows.unlabelled)
    limit = int(work.parameters.get("teacher_audit_rows", 200))
    audited = gold if limit < 0 else min(limit, gold)
    known = rows.unlabelled + audited * (rows.train - rows.unlabelled) / gold
    asked = max(0.0, rows.train - known) * _share(step)
    found = _ask(step, work, machine, asked, int(get(step, work, "teacher_shots")))
    return replace(found, rows=round(rows.train * _share(step)))


def held_out_rows(step: Step, work: Workload) -> int:
    limit = int(get(step, work, "eval_rows", 0))
    return min(work.rows.held_out, limit) if limit else work.rows.held_out


def answering(
    step: Step, work: Workload, machine: Machine, references: Sequence[str], rows: float
) -> Estimate:
    """Models that answer the held-out rows in batches, and some rows one by one for the latency."""
    found = Estimate(rows=round(rows))
    batch = float(get(step, work, "eval_batch_size", 64))
    slow = min(rows, float(get(step, work, "latency_rows", 0)))
    for reference in references:
        model = work.model(reference)
        source, target = lengths(work, reference, step)
        found += generate(machine, model, rows, source, target + 1, batch)
        found += generate(machine, model, slow, source, target + 1, 1)
    return replace(found, rows=round(rows))


def evaluated(step: Step, work: Workload, machine: Machine) -> Estimate:
    """Students, the untrained base, and the teacher once for each number of shots."""
    student = str(get(step, work, "student_model_reference"))
    rows = held_out_rows(step, work)
    runs = len(work.parameters.get("runs", [])) or 1
    found = answering(step, work, machine, [student] * (runs + 1), rows)
    return with_teacher(step, work, machine, found, rows)


def evaluated_models(step: Step, work: Workload, machine: Machine) -> Estimate:
    """Every model of the list on all labelled rows, and the teacher as in `evaluated`."""
    from pipestill.evaluation.models_run import split_name

    references = [split_name(str(item))[1] for item in get(step, work, "models", [])]
    limit = int(get(step, work, "eval_rows", 0))
    labelled_rows = work.rows.train + work.rows.held_out - work.rows.unlabelled
    rows = min(labelled_rows, limit) if limit else labelled_rows
    found = answering(step, work, machine, references, rows)
    return with_teacher(step, work, machine, found, rows)


def with_teacher(
    step: Step, work: Workload, machine: Machine, found: Estimate, rows: float
) -> Estimate:
    """Adds the few-shot arms: the teacher once for each number of shots."""
    shots = [
        int(part)
        for part in str(get(step, work, "eval_shots")).split(",")
        if part.strip().isdigit()
    ]
    for count in shots:
        found += _ask(step, work, machine, rows, count)
    return found


def evaluated_distilled(step: Step, work: Workload, machine: Machine) -> Estimate:
    student = str(get(step, work, "student_model_reference"))
    teacher = str(get(step, work, "teacher_model_reference"))
    runs = len(work.parameters.get("runs", [])) or 1
    return answering(
        step, work, machine, [student] * (runs + 1) + [teacher], held_out_rows(step, work)
    )


def evaluated_tuned(step: Step, work: Workload, machine: Machine) -> Estimate:
    reference = str(get(step, work, "large_model_reference"))
    return answering(step, work, machine, [reference] * 2, held_out_rows(step, work))


def batch_answers(step: Step, work: Workload, machine: Machine) -> Estimate:
    """A shard's rows, labelled or not, answered in batches."""
    from pipestill.serving.batch import GROUP_BATCHES

    reference = str(get(step, work, "model_reference"))
    rows = (work.rows.train + work.rows.held_out) * _share(step)
    model = work.model(reference)
    source, target = lengths(work, reference, step)
    longest = float(get(step, work, "max_output_tokens", 256))
    written = min(target + 1 if work.rows.outputs else longest, longest)
    batch = float(get(step, work, "batch_size", 32))
    found = generate(machine, model, rows, source, written, batch)
    return replace(spread(found, machine, rows / (batch * GROUP_BATCHES)), rows=round(rows))


def evaluated_policy(step: Step, work: Workload, machine: Machine) -> Estimate:
    reference = str(get(step, work, "large_model_reference"))
    model, rows = work.model(reference), held_out_rows(step, work)
    source, _ = preference_lengths(step, work, reference)
    target = float(get(step, work, "target_sequence_length", 64))
    batch = float(get(step, work, "eval_batch_size", 64))
    found = generate(machine, model, rows * 2, source, target, batch)
    if get(step, work, "judge_model_reference"):
        work.say("the judge's own calls are not counted")
    return found


def teacher_answers(step: Step, work: Workload, machine: Machine) -> Estimate:
    """The teacher reads every training row; where it gives the targets it writes them as well."""
    reference = str(get(step, work, "teacher_model_reference"))
    model, rows = work.model(reference), work.rows.train
    source, target = lengths(work, reference, step)
    batch = float(get(step, work, "teacher_eval_batch_size", 64))
    flops = rows * model.read_flops(source, target)
    read = Estimate(
        rows=rows,
        flops=flops,
        tokens_in=round(rows * source),
        seconds=machine.prefill_share.under(flops / machine.one_peak),
        counted=model.parameters is not None,
    )
    if get(step, work, "targets", "teacher") != "teacher":
        return read
    return read + generate(machine, model, rows, source, target, batch)
