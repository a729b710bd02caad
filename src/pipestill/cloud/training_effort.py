"""What training steps compute: 6·N·D and attention, forward and backward, of real tokens."""

from dataclasses import replace

from pipestill.cloud.effort import Estimate, generate, get, lengths, preference_lengths, prompt_of
from pipestill.cloud.machines import Machine
from pipestill.cloud.pipeline_steps import Step
from pipestill.cloud.workload import Model, Workload

PREFIX_TOKENS = 3  # "predict: " or "explain: " before a student's input
LORA_SHARE = 2 / 3  # frozen weights cost 4 operations a token, not 6


def _train(
    work: Workload,
    machine: Machine,
    model: Model,
    steps: int,
    batch: int,
    *parts: tuple[float, float],
) -> Estimate:
    """`steps` of `batch` rows, each row computed as the given (input, output) token counts."""
    rows = steps * batch
    flops = rows * sum(model.train_flops(source, target) for source, target in parts)
    seconds = machine.training(flops, steps, model.two_stacks)
    return Estimate(
        rows=work.rows.train or work.rows.pairs or work.rows.prompts,
        tokens_in=round(rows * sum(source for source, _ in parts)),
        tokens_out=round(rows * sum(target for _, target in parts)),
        flops=flops,
        seconds=seconds,
        counted=model.parameters is not None,
    )


def _validating(
    step: Step, work: Workload, machine: Machine, model: Model, steps: int, rows: int,
    part: tuple[float, float],
) -> Estimate:  # fmt: skip
    """Losses of the validation rows, every `evaluation_interval` steps."""
    interval = max(1, int(get(step, work, "evaluation_interval", 100)))
    passes = max(1, steps // interval)
    held = rows * float(get(step, work, "validation_fraction", 0.1)) * passes
    flops = held * model.read_flops(*part)
    return Estimate(flops=flops, seconds=machine.training(flops, passes, model.two_stacks))


def student(step: Step, work: Workload, machine: Machine) -> Estimate:
    reference = str(get(step, work, "student_model_reference"))
    model = work.model(reference)
    source, target = lengths(work, reference, step)
    source += PREFIX_TOKENS
    steps, batch = int(get(step, work, "train_steps", 300)), int(get(step, work, "batch_size", 32))
    objective = str(get(step, work, "run", step.item)).split(":")[0]
    reason = _rationale_tokens(step, work, reference)
    parts = [(source, target)]
    if objective == "label_then_rationale":
        parts = [(source, target + reason)]
    elif objective != "label_only":
        share = float(get(step, work, "rationale_fraction", 1.0))
        explained = _train(work, machine, model, steps, batch, (source, reason))
        labelled = _train(work, machine, model, steps, batch, (source, target))
        flops = labelled.flops + explained.flops * share
        trained = Estimate(
            rows=work.rows.train,
            tokens_in=labelled.tokens_in + round(explained.tokens_in * share),
            tokens_out=labelled.tokens_out + round(explained.tokens_out * share),
            flops=flops,
            seconds=machine.training(flops, steps, model.two_stacks),
            counted=labelled.counted,
        )
        return trained + _validating(
            step, work, machine, model, steps, work.rows.train, (source, target + reason)
        )
    trained = _train(work, machine, model, steps, batch, *parts)
    return trained + _validating(step, work, machine, model, steps, work.rows.train, parts[0])


def _rationale_tokens(step: Step, work: Workload, reference: str) -> float:
    """Mean tokens of the prompt's own worked explanations, before the teacher has said any."""
    prompt = prompt_of(step, work)
    texts = [example.rationale for example in prompt.examples] if prompt else []
    longest = float(get(step, work, "max_output_tokens", 256))
    return min(work.mean_tokens(reference, texts) or 40.0, longest)


def tuned(step: Step, work: Workload, machine: Machine) -> Estimate:
    reference = str(get(step, work, "large_model_reference"))
    model = work.model(reference)
    part = lengths(work, reference, step)
    steps, batch = int(get(step, work, "train_steps", 300)), int(get(step, work, "batch_size", 32))
    share = LORA_SHARE if get(step, work, "method") == "lora" else 1.0
    share *= 4 / 3 if get(step, work, "gradient_checkpointing", False) else 1.0
    trained = _train(work, machine, model, steps, batch, part)
    seconds = machine.training(trained.flops * share, steps, model.two_stacks)
    trained = replace(trained, flops=trained.flops * share, seconds=seconds)
    return trained + _validating(step, work, machine, model, steps, work.rows.train, part)


def teacher_tuned(step: Step, work: Workload, machine: Machine) -> Estimate:
    reference = str(get(step, work, "teacher_model_reference"))
    steps = int(get(step, work, "teacher_train_steps", 0))
    batch = int(get(step, work, "teacher_batch_size", 32))
    part = lengths(work, reference, step)
    return _train(work, machine, work.model(reference), steps, batch, part)


def distilled(step: Step, work: Workload, machine: Machine) -> Estimate:
    """The student's training, and 2·N·D more for a teacher that is asked in every step."""
    reference = str(get(step, work, "student_model_reference"))
    model, part = work.model(reference), lengths(work, reference, step)
    steps, batch = int(get(step, work, "train_steps", 300)), int(get(step, work, "batch_size", 32))
    trained = _train(work, machine, model, steps, batch, part)
    family = str(get(step, work, "run", step.item)).split(":")[0].split("@")[0].split("/")[0]
    if family == "on_policy":
        rows = steps * batch * float(get(step, work, "on_policy_fraction", 0.5))
        trained += generate(machine, model, rows, part[0], part[1], batch)
    if family == "self":
        trained += Estimate(seconds=trained.seconds * 0.33, flops=trained.flops / 3)
    elif family not in ("gold", "teacher_labels") and get(step, work, "teacher_source") != "stored":
        teacher = work.model(str(get(step, work, "teacher_model_reference")))
        flops = steps * batch * teacher.read_flops(*part)
        read = machine.training(flops, steps, teacher.two_stacks)
        trained += Estimate(flops=flops, seconds=read, counted=teacher.parameters is not None)
    return trained + _validating(step, work, machine, model, steps, work.rows.train, part)


def reward(step: Step, work: Workload, machine: Machine) -> Estimate:
    """Each pair is two rows."""
    start = get(step, work, "large_model_reference")
    reference = str(get(step, work, "reward_model_reference") or start)
    steps = int(get(step, work, "reward_model_train_steps", 1000))
    batch = int(get(step, work, "reward_batch_size", 64))
    part = preference_lengths(step, work, reference)
    return _train(work, machine, work.model(reference), steps, batch, part, part)


def policy(step: Step, work: Workload, machine: Machine) -> Estimate:
    """Each rollout: answers sampled, read by reference and reward model, then updated upon."""
    reference = str(get(step, work, "large_model_reference"))
    model = work.model(reference)
    steps = int(get(step, work, "reinforcement_learning_train_steps", 1000))
    batch = int(get(step, work, "rollout_batch_size", 64))
    source, target = preference_lengths(step, work, reference)
    if get(step, work, "policy_objective", "ppo") in ("dpo", "cdpo", "ipo"):
        trained = _train(work, machine, model, steps, batch, (source, target), (source, target))
        read = trained.flops / 3
        return trained + Estimate(flops=read, seconds=machine.training(read, 0, model.two_stacks))
    updates = steps * max(1, int(get(step, work, "ppo_epochs", 4)))
    target = float(get(step, work, "target_sequence_length", 64))
    trained = _train(work, machine, model, updates, batch, (source, target))
    rows = steps * batch
    read = 3 * rows * model.read_flops(source, target)
    scored = Estimate(flops=read, seconds=machine.training(read, steps, model.two_stacks))
    return trained + scored + generate(machine, model, rows, source, target, batch)
