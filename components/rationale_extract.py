"""Component `rationale_extract`: the teacher's reasoning for every row, parsed and filtered."""

from kfp.dsl import Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def rationale_extract(
    labelled: Input[Dataset],
    cache_key: str,
    rationales: Output[Dataset],
    metrics: Output[Metrics],
    state_dir: str = "",
    rationale_require_agreement: bool = True,
    rationale_min_words: int = 3,
    rationale_max_words: int = 200,
    rationale_drop_leaks: bool = True,
    teacher_model_reference: str = "pocket-teacher",
    teacher_backend: str = "transformers",
    teacher_prompt: str = "refund_desk.v1",
    teacher_shots: int = 5,
    teacher_samples: int = 1,
    teacher_temperature: float = 0.7,
    teacher_max_new_tokens: int = 96,
    teacher_batch_size: int = 32,
    teacher_concurrency: int = 8,
    teacher_replay_uri: str = "",
    teacher_base_url: str = "",
    teacher_api_key_env: str = "OPENAI_API_KEY",
    teacher_budget_tokens: int = 0,
    teacher_budget_usd: float = 0.0,
    teacher_usd_per_million_input: float = 0.0,
    teacher_usd_per_million_output: float = 0.0,
    teacher_min_success: float = 0.9,
    teacher_max_retries: int = 6,
    teacher_timeout_s: float = 120.0,
):
    """Asks for chain-of-thought answers (calls that are in the journal cost nothing) and filters.

    Args:
        labelled: JSONL of `Labelled` from `teacher_label`.
        cache_key: digest of contents and code, from `data_digest`.
        rationales: the same rows with `rationale` and `rationale_status` filled.
        metrics: the yield table: asked, parsed, kept, and dropped by each filter.
        state_dir: folder that outlives the run; the journal lies in it.

    The other parameters are the fields of `pipestill.config.RationaleConfig` (``rationale_``) and
    `pipestill.config.TeacherConfig` (``teacher_``).
    """
    from pipestill.config import RationaleConfig, TeacherConfig, pick
    from pipestill.generation.rationale import extract_rationales
    from pipestill.records import write_json

    summary = extract_rationales(
        labelled.path,
        rationales.path,
        state_dir=state_dir,
        teacher=pick(TeacherConfig, locals(), prefix="teacher_"),
        config=pick(RationaleConfig, locals(), prefix="rationale_"),
    )
    rationales.metadata.update(summary)
    metrics.metadata.update(summary)
    write_json(metrics.path, summary)
