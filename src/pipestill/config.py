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
    rationale_fraction: float = 1.0  # share of a step's rationales that is computed; unbiased
    packing: str = "auto"  # auto | on | off: several short rows in one sequence (decoders)
    compile: str = "auto"  # auto | on | off: torch.compile; auto = on a GPU
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
class TeacherLogitsConfig:
    """What the teacher answers and what of its probabilities is kept. Component `teacher_logits`.

    Parameters carry no prefix; the teacher itself comes from the component `teacher_prepare`.
    """

    targets: str = "teacher"  # teacher | label: whose text the student is distilled on
    top_k: int = 64  # largest log-probabilities kept a token; 0 = none, the teacher works online
    tau: float = 1.0  # the temperature that they are stored at
    teacher_eval_batch_size: int = 64
    max_context_length: str = "1024"
    max_output_tokens: int = 256
    precision: str = "auto"  # auto | fp32 | bf16


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a student is distilled. Component `distill_train`; the objective stands in its `run`."""

    student_model_reference: str = "pocket-base"
    targets: str = "teacher"  # teacher | label: whose text the student is distilled on
    teacher_source: str = "online"  # online | stored: asked in every step, or read from the store
    kd_weight: float = 0.5  # w in (1 - w)·CE + w·tau²·divergence
    tau: float = 1.0  # temperature of both distributions
    scale_by_tau2: bool = True
    jsd_beta: float = 0.5  # 0 = forward KL, 1 = reverse KL
    skew: float = 0.1  # share of the other distribution in the skewed divergences
    feature_weight: float = 1.0
    relation_weight: float = 1.0
    layer_map: str = "uniform"  # or student:teacher pairs, "0:1,1:3"; "encoder 0:1; decoder 0:0"
    auto_balance: bool = False  # weigh every term to the gradient norm of the cross-entropy
    cross_tokenizer: str = "refuse"  # refuse | uld | sequence: where the vocabularies differ
    ema_decay: float = 0.99  # self/ema and self/context: share of the old teacher kept a step
    generations: int = 1  # self/born_again: students that are each taught by the one before
    context_shots: int = 4  # self/context: demonstrations in the teacher's prompt
    on_policy_fraction: float = 0.5  # rows of a step whose answer the student samples itself
    sample_temperature: float = 1.0
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
class PreferenceConfig:
    """How preference and prompt rows are read. Component `preference_prep`."""

    instruction: str = ""  # before every input; in a chat the context of rows that have none
    eval_fraction: float = 0.2  # held out by hash of the prompt where no evaluation file is given
    max_rejected_fraction: float = 0.05  # the step fails past this share of bad rows
    max_rows: int = 0  # 0 = all
    prompt_sequence_length: int = 512
    target_sequence_length: int = 64
    split_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """How a reward model is trained. Component `reward_model_train`."""

    reward_model_reference: str = ""  # empty = the model that the policy starts from
    instruction: str = ""
    reward_method: str = "full"  # full | lora
    reward_lora_rank: int = 4
    centering: float = 0.01  # weight of (r_chosen + r_rejected)², which keeps rewards around 0
    reward_model_train_steps: int = 1000
    reward_batch_size: int = 64  # pairs a step, over all processes
    reward_model_learning_rate: float = 0.0  # 0 = the recommended rate
    reward_model_learning_rate_multiplier: float = 1.0
    prompt_sequence_length: int = 512
    target_sequence_length: int = 64
    evaluation_interval: int = 100
    enable_early_stopping: bool = True
    checkpoint_interval: int = 100
    precision: str = "auto"  # auto | fp32 | bf16
    train_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How a policy is trained against preferences. Component `policy_train`."""

    large_model_reference: str = "pocket-base"
    policy_objective: str = "ppo"  # ppo | rloo | grpo | dpo | cdpo | ipo
    instruction: str = ""
    method: str = "full"  # full | lora (the reference is then the adapter switched off)
    lora_rank: int = 16
    kl_coeff: float = 0.1  # beta: of the KL penalty, and of DPO
    kl_target: float = 0.0  # nats an answer; above 0 the coefficient adapts to reach it
    kl_horizon: int = 10_000
    kl_bound: float = 20.0  # nats an answer; the run stops past it, the best checkpoint lies below
    reinforcement_learning_train_steps: int = 1000  # rollouts, each with its updates
    rollout_batch_size: int = 64  # answers a rollout, over all processes
    samples_per_prompt: int = 1  # rloo and grpo need 2 or more
    ppo_epochs: int = 4
    minibatches: int = 1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_coeff: float = 0.1
    whiten_rewards: bool = False
    temperature: float = 1.0  # divides the logits of old, new and reference policy alike
    missing_eos_penalty: float = 1.0  # taken off the reward of an answer that does not end
    label_smoothing: float = 0.1  # cdpo only
    importance_cap: float = 2.0  # of weights where another engine has sampled
    reinforcement_learning_rate: float = 0.0  # 0 = the recommended rate
    reinforcement_learning_rate_multiplier: float = 1.0
    max_grad_norm: float = 1.0
    prompt_sequence_length: int = 512
    target_sequence_length: int = 64
    evaluation_interval: int = 20
    rlhf_eval_rows: int = 64  # held-out prompts on which reward and KL are measured
    checkpoint_interval: int = 20
    precision: str = "auto"  # auto | fp32 | bf16
    train_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is measured on the held-out rows. Component `evaluate`."""

    eval_shots: str = "0,2,5"  # teacher few-shot arms; "" = none
    eval_rows: int = 0  # 0 = all held-out rows
    latency_rows: int = 30  # rows timed one by one at batch size 1
    eval_batch_size: int = 64
    max_output_tokens: int = 256


@dataclass(frozen=True, kw_only=True)
class CurveConfig:
    """How one way of training is measured against the number of rows. Component `train_curve`."""

    shares: str = "0.125,0.25,0.5,1"  # of the training rows; smaller ones lie inside larger ones
    seeds: str = "0,1,2"
    learning_rates: str = ""  # tried on the validation rows; "" = the recommended one and its
    # third and threefold
    search_seed: int = 1000  # of the trials; none of `seeds`
    deploy_share: float = 1.0  # whose first seed is kept as the student


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """What a request costs where a model answers it. Component `evaluate_prompts`."""

    serving_machine: str = "n1-standard-4"  # of the price table
    machine_usd_per_hour: float = 0.0  # above 0 it takes the place of the table's price


@dataclass(frozen=True, kw_only=True)
class FrontierConfig:
    """Reward against KL, by one policy a coefficient. Component `reward_frontier`."""

    preference_dataset: str = ""  # "" = not measured
    prompt_dataset: str = ""
    supervised_dataset: str = ""
    supervised_train_steps: int = 150
    kl_coeffs: str = "0.1,0.4,1.6"


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
    code_samples: int = 0  # programs a row for pass@k; 0 = the greedy one alone
    code_temperature: float = 0.8  # that they are sampled at


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


def refuse_out_of_range(config: Any, rules: Mapping[str, tuple[bool, str]]) -> None:
    """Refuses the first setting whose rule does not hold.

    Args:
        config: a config of this module.
        rules: field → (whether it is fine, what is allowed).

    Raises:
        UserError: ``CONFIG_VALUE``.
    """
    for name, (fine, allowed) in rules.items():
        if not fine:
            raise config_value(name, getattr(config, name), allowed)


def config_value(name: str, found: Any, allowed: str) -> UserError:
    """The error of a setting out of range."""
    return UserError(
        "CONFIG_VALUE",
        f"{name}: found {found!r}, allowed: {allowed}",
        "correct the value in the configuration file or in --set",
    )


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
