"""Component `check_accelerator`: refuses a template that was compiled for other hardware."""

from pipestill.components._base import component


@component
def check_accelerator(compiled_for: str, accelerator_type: str = "CPU"):
    """Stops a run whose `accelerator_type` is not what the template's machines have.

    The machines are constants of a compiled template, so another value could not change them.

    Args:
        compiled_for: CPU, GPU or TPU, compiled in.
        accelerator_type: what the user asks for.
    """
    from pipestill.errors import UserError

    if accelerator_type.upper() != compiled_for:
        raise UserError(
            "ACCELERATOR_MISMATCH",
            f"accelerator_type: found {accelerator_type!r}, this template has {compiled_for!r}",
            "submit the template that was compiled for the other hardware",
        )
