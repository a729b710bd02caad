"""Component `gate`: whether the tuned policy may take its start's place, rule by rule."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def gate(
    predictions: Input[Dataset],
    evaluation_metrics: Input[Metrics],
    policy: Input[Model],
    decision: Output[Metrics],
    gate_min_rows: int = 50,
    gate_min_gain: float = 0.0,
    gate_perplexity_margin: float = 0.5,
    gate_eos_margin: float = 0.05,
    kl_bound: float = 20.0,
    gate_override: str = "",
) -> str:
    """Promotes only what is surely better in reward, and not surely or possibly worse elsewhere.

    Args:
        predictions: rows of `evaluate_policy`.
        evaluation_metrics: its metrics JSON.
        policy: folder from `policy_train`; its alarms count up to the chosen checkpoint.
        decision: every rule with outcome and numbers, and the decision.
        gate_min_rows: held-out prompts wanted.
        gate_min_gain: normalised reward that the gain's whole 95 % interval has to exceed.
        gate_perplexity_margin: share by which the answers' perplexity under the start may rise.
        gate_eos_margin: share of answers by which those that end may become fewer.
        kl_bound: nats an answer.
        gate_override: a person's reason to promote whatever the rules say; it is recorded.

    Returns:
        promote, keep or cannot_tell.
    """
    from pipestill.rlhf.policy_gate import gate_policy

    return gate_policy(
        predictions.path,
        evaluation_metrics.path,
        policy.path,
        decision.path,
        min_rows=gate_min_rows,
        min_gain=gate_min_gain,
        perplexity_margin=gate_perplexity_margin,
        eos_margin=gate_eos_margin,
        kl_bound=kl_bound,
        override=gate_override,
    )
