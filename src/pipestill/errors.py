"""Errors that a person can act on: what was found, what is allowed, what to do.

Every mistake of the user's is a `UserError` with a stable code; the command line prints it on one
line and exits with 2. Work that failed for another reason is a `WorkError` (exit code 1).
"""


class PipestillError(Exception):
    """Base of both kinds, so that one `except` at the command line covers them.

    Args:
        code: stable, greppable identifier such as ``DATA_EMPTY``.
        message: one sentence: where (file, line, field), what was found, what is allowed.
        hint: what to do now.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        self.code, self.message, self.hint = code, message, hint
        super().__init__(f"[{code}] {message}" + (f" → {hint}" if hint else ""))


class UserError(PipestillError):
    """The input is wrong: a file, a row, an option, a model name, a permission."""

    exit_code = 2


class WorkError(PipestillError):
    """The input is right and the work failed: too few answers, a budget reached, a server gone."""

    exit_code = 1
