"""Component `model_digest`: what a model reference stands for, as a string to cache by."""

from pipestill.components._base import component


@component
def model_digest(model_reference: str) -> str:
    """Resolves a model to its contents; runs every time, because a folder's contents may change.

    Args:
        model_reference: folder, pocket model, hub name or gs:// folder.

    Returns:
        sha256 over the contents (object generations for gs://), or over a hub model's name.
    """
    from pipestill.serving.batch import model_digest

    return model_digest(model_reference)
