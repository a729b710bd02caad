"""Component `data_digest`: the inputs' contents as one string that later steps are cached by."""

from pipestill.components._base import component


@component
def data_digest(
    dataset_uri: str,
    evaluation_data_uri: str = "",
    teacher_replay_uri: str = "",
) -> str:
    """Resolves the inputs to a content digest; runs every time, because caching rests on it.

    Args:
        dataset_uri: file, folder or glob of rows; local path, gs:// or hf://.
        evaluation_data_uri: held-out rows, or empty.
        teacher_replay_uri: recorded teacher outputs, or empty.

    Returns:
        sha256 over the contents (object generation and crc32c for gs://) and the library's code.
    """
    from pipestill.data.digest import run_digest

    return run_digest(dataset_uri, evaluation_data_uri, teacher_replay_uri)
