"""How near generated code is to the reference where it is not run."""

from __future__ import annotations

import math
import re
import shlex

OPERATORS = {"|", "||", "&&", ";", "&", "(", ")", "$(", "{", "}", "|&", "!"}
# Words after which a command's name stands, as an operator has it.
PREFIX_COMMANDS = {"sudo", "xargs", "time", "nohup", "exec", "do", "then", "else", "-exec"}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
ARGUMENT = "ARG"


def template(command: str) -> tuple[str, ...]:
    """A shell command with its arguments left out: names of programs, flags and operators.

    ``find . -name '*.py' | wc -l`` → ``find ARG -name ARG | wc -l``. Two commands of one template
    do the same kind of thing to other files (Lin et al. 2018, NL2Bash, section 6.2).
    """
    found: list[str] = []
    expects_name = True
    for word in words(command):
        if word in OPERATORS or set(word) <= set("|&;()"):
            found.append(word)
            expects_name = True
        elif set(word) <= set("<>&0123456789") and ("<" in word or ">" in word):
            found.append(word)
        elif expects_name and _ASSIGNMENT.match(word):
            found.append(ARGUMENT)
        elif expects_name or word in PREFIX_COMMANDS:
            found.append(word)
            expects_name = word in PREFIX_COMMANDS
        elif word.startswith("-") and len(word) > 1 and not _is_number(word):
            found.append(word.partition("=")[0])
        else:
            found.append(ARGUMENT)
    return tuple(found)


def same_template(answer: str, gold: str) -> bool:
    """Whether both have the same template; an empty answer never has."""
    return bool(answer.strip()) and template(answer) == template(gold)


def words(command: str) -> list[str]:
    """The shell's words; what the shell could not read is split at white space."""
    reader = shlex.shlex(command, posix=True, punctuation_chars="|&;()<>")
    reader.whitespace_split = True
    reader.commenters = ""
    try:
        return list(reader)
    except ValueError:  # a quote that is not closed
        return command.split()


def _is_number(word: str) -> bool:
    return word[1:].isdecimal()


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that one of `k` of the row's samples passes: 1 − C(n−c, k) / C(n, k).

    Unbiased, unlike 1 − (1 − c/n)^k (Chen et al. 2021, arXiv 2107.03374, section 2.1, equation 1).
    The score of a set is the mean over its rows.

    Args:
        samples: n, independent answers to one row.
        passed: c, those whose program passes the row's tests.
        k: at most `samples`.

    Raises:
        ValueError: where not 0 <= passed <= samples and 1 <= k <= samples.
    """
    if not (0 <= passed <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} of {samples} samples, {passed} passed")
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)
