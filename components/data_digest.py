"""Component `data_digest`: the inputs' contents as one string that later steps are cached by."""

from pipestill.components._base import component


@component
def data_digest(
    dataset_uri: str = "",
    evaluation_data_uri: str = "",
    teacher_dataset_uri: str = "",
    teacher_replay_uri: str = "",
    preference_dataset: str = "",
    prompt_dataset: str = "",
    eval_dataset: str = "",
) -> str:
    """Resolves the inputs to a content digest; runs every time, because caching rests on it.

    Every input is a file, folder or glob (local path, gs:// or hf://), or empty.

    Args:
        dataset_uri: rows.
        evaluation_data_uri: held-out rows.
        teacher_dataset_uri: rows to tune the teacher on.
        teacher_replay_uri: recorded teacher outputs.
        preference_dataset: preference rows.
        prompt_dataset: prompts of the policy.
        eval_dataset: held-out preference rows or prompts.

    Returns:
        sha256 over the contents (object generation and crc32c for gs://) and the library's code.
    """
    uris = dict(locals())
    from pipestill.data.digest import run_digest

    return run_digest(**uris)
