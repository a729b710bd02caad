"""What a finished distillation tells of itself beside losses and steps."""

from pipestill.training.progress import Progress


def teacher_tokens(progress: Progress) -> int:
    """Tokens that the teacher read and wrote in the whole run, from its log."""
    total, before = 0.0, 0
    for entry in progress.log:
        if entry.get("teacher_tokens") is not None:
            total += entry["teacher_tokens"] * (entry["step"] - before)
            before = entry["step"]
    window = [entry["teacher_tokens"] for entry in progress.window if "teacher_tokens" in entry]
    return round(total + sum(float(value) for value, _ in window))


def last_terms(progress: Progress) -> dict[str, float]:
    """The last logged value of every term but the cross-entropy, and of every share."""
    found: dict[str, float] = {}
    for entry in progress.log:
        for name, value in entry.items():
            term = name.endswith("_loss") and name not in ("label_loss", "val_label_loss")
            if (term or name.endswith("_share")) and value is not None:
                found[name] = float(value)
    return found
