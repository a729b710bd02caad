"""Every setting and its default: one frozen dataclass a stage, the source of truth.

Component signatures repeat these names and defaults as literals (KFP needs literals); a parity test
compares them, so a default is changed here first. Only str, int, float and bool occur, because
these are what a pipeline parameter can carry.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pipestill.errors import UserError

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How raw rows become training and held-out rows. Component `data_prep`."""

    data_format: str = "auto"  # auto | jsonl | json | csv | parquet | a converter's name
    input_field: str = "input_text"
    output_field: str = "output_text"
    eval_fraction: float = 0.2  # held out by hash where no evaluation file is given
    max_rejected_fraction: float = 0.05  # the step fails past this share of bad rows
    dedupe: bool = True
    leak_policy: str = "drop"  # drop | fail: training rows whose input stands in the held-out set
    max_rows: int = 0  # 0 = all
    max_context_length: str = "1024"  # input tokens of the student; "8k" is read as 8192
    max_output_tokens: int = 256
    split_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Who the teacher is and what it may cost. Parameters carry the prefix ``teacher_``."""

    model_reference: str = "pocket-teacher"
    backend: str = "transformers"  # transformers | replay | openai
    prompt: str = "refund_desk.v1"  # a versioned prompt file's name, or a path to one
    shots: int = 5
    samples: int = 1  # k chain-of-thought samples a row; k > 1 votes (self-consistency)
    temperature: float = 0.7  # used only where samples > 1; one sample is greedy
    max_new_tokens: int = 96
    batch_size: int = 32
    concurrency: int = 8  # requests in flight (openai backend)
    replay_uri: str = ""  # recorded outputs: a file or a glob, rows in source order
    base_url: str = ""
    api_key_env: str = "OPENAI_API_KEY"  # the variable's NAME; the key itself is never a parameter
    budget_tokens: int = 0  # prompt + output tokens of paid calls; 0 = no limit
    budget_usd: float = 0.0
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0
    min_success: float = 0.9  # parsed answers / asked rows; below it the step fails
    audit_rows: int = 200  # rows WITH a gold label on which accuracy is measured; -1 = all
    max_retries: int = 6
    timeout_s: float = 120.0


@dataclass(frozen=True, kw_only=True)
class RationaleConfig:
    """Which rationales are good enough to train on. Parameters carry the prefix ``rationale_``."""

    require_agreement: bool = True  # keep only rationales that end in the row's label
    min_words: int = 3
    max_words: int = 200
    drop_leaks: bool = True  # rationale that only restates the answer, or runs into a next example


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a student is trained. Component `student_train`."""

    student_model_reference: str = "pocket-base"
    alpha: float = 0.5  # share of the label loss; lambda = (1 - alpha) / alpha
    train_steps: int = 300
    batch_size: int = 32  # examples a step, over all processes
    learning_rate: float = 0.0  # 0 = the recommended rate for this model and batch
    learning_rate_multiplier: float = 1.0
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_context_length: str = "1024"
    max_output_tokens: int = 256
    validation_fraction: float = 0.1  # of the training rows; selects the checkpoint
    evaluation_interval: int = 100
    enable_early_stopping: bool = True
    checkpoint_interval: int = 100
    precision: str = "auto"  # auto | fp32 | bf16


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How a model is tuned on given answers. Component `supervised_tune`."""

    large_model_reference: str = "pocket-base"
    task: str = "text"  # text | chat | code
    method: str = "full"  # full | lora
    lora_rank: int = 16
    lora_alpha: float = 32.0  # the adapter's output is scaled by alpha / rank
    lora_dropout: float = 0.0
    instruction: str = ""  # before every input; in a chat the context of rows that have none
    gradient_checkpointing: bool = False  # less memory for a third more computing
    packing: str = "auto"  # auto | on | off: several short rows in one sequence (decoders)
    compile: str = "auto"  # auto | on | off: torch.compile; auto = on a GPU
    train_seed: int = 0
    train_steps: int = 300
    batch_size: int = 32  # examples a step, over all processes
    learning_rate: float = 0.0  # 0 = the recommended rate for model and batch; LoRA: ten times that
    learning_rate_multiplier: float = 1.0
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_context_length: str = "1024"
    max_output_tokens: int = 256
    validation_fraction: float = 0.1  # of the training rows; selects the checkpoint
    evaluation_interval: int = 100
    enable_early_stopping: bool = True
    checkpoint_interval: int = 100
    precision: str = "auto"  # auto | fp32 | bf16


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is measured on the held-out rows. Component `evaluate`."""

    eval_shots: str = "0,2,5"  # teacher few-shot arms; "" = none
    eval_rows: int = 0  # 0 = all held-out rows
    latency_rows: int = 30  # rows timed one by one at batch size 1
    eval_batch_size: int = 64
    max_output_tokens: int = 256


@dataclass(frozen=True, kw_only=True)
class TuneEvalConfig:
    """What is measured of a tuned model and its base. Component `evaluate_tuned`."""

    eval_rows: int = 0  # 0 = all held-out rows
    latency_rows: int = 30  # rows timed one by one at batch size 1
    eval_batch_size: int = 64
    max_output_tokens: int = 256
    code_execution: bool = False  # run the answers to rows that bring tests, in a sandbox
    code_timeout_s: float = 5.0  # wall-clock time of one program
    code_memory_mb: int = 512  # address space of one program


def parse_length(text: str | int) -> int:
    """Reads a context length as Google's pipelines write it: ``"8k"`` → 8192, ``"1024"`` → 1024.

    Raises:
        UserError: ``LENGTH_UNREADABLE``.
    """
    value = str(text).strip().lower()
    number = value.removesuffix("k")
    if not number.isdigit() or int(number) == 0:
        raise UserError(
            "LENGTH_UNREADABLE",
            f"max_context_length: found {text!r}, allowed: a number of tokens (1024, 8k, 32k)",
        )
    return int(number) * (1024 if value.endswith("k") else 1)


def pick(kind: type[Config], parameters: Mapping[str, Any], prefix: str = "") -> Config:
    """Builds a config from a component's arguments, by name; others are ignored.

    KFP hands whole numbers over as floats in some places, so an int field takes 3.0 as 3.

    Raises:
        UserError: ``CONFIG_TYPE`` where a value cannot be the field's type.
    """
    values: dict[str, Any] = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = prefix + item.name
        if name in parameters:
            values[item.name] = _coerce(name, item.type, parameters[name])
    return kind(**values)


def _coerce(name: str, kind: Any, value: Any) -> Any:
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise UserError(
            "CONFIG_TYPE",
            f"{name}: found {value!r} ({type(value).__name__}), allowed: {kind.__name__}",
            "correct the value in the configuration file or in --set",
        )
    return value
