"""The names of the arms, in the order and with the words every table and chart uses."""

import re
from collections.abc import Iterable

LABELS = {
    "dss": "DSS",
    "label_then_rationale": "Label, then rationale",
    "label_only": "Label only",
    "shuffled": "Shuffled rationales",
    "tuned": "Tuned",
    "response": "Response",
    "feature": "Feature",
    "relation": "Relation",
    "self": "Self-distillation",
    "on_policy": "On-policy",
    "teacher_labels": "Teacher's answers",
    "gold": "Gold labels",
    "finetune": "Standard fine-tuning",
    "distillation": "Standard distillation",
    "dss_teacher": "DSS without gold labels",
    "base": "Untrained base",
    "teacher": "Teacher",
    "teacher_recorded": "Teacher, recorded",
    "teacher_few_shot": "Teacher, few-shot",
}
# Names a reader of the summary may rely on, whatever the run contained.
PROMISED = ("dss", "label_only", "shuffled", "teacher_few_shot", "base")
TEACHER_ALIAS = "teacher_few_shot"
TEACHERS = ("teacher", "teacher_recorded", TEACHER_ALIAS)

ALL_SHARES = "mean"  # stands for a share where an arm's mean over its shares is meant

_SHOTS = re.compile(r"teacher_(\d+)_shot")
_LARGE = re.compile(r"large_(\d+)_shot")


def teacher_arm(shots: int) -> str:
    """The arm's name of a teacher prompted with `shots` worked examples."""
    return f"teacher_{shots}_shot"


def shots_of(arm: str) -> int:
    """Worked examples in the prompt of a few-shot arm; -1 for every other arm."""
    match = _SHOTS.fullmatch(arm)
    return int(match[1]) if match else -1


def large_arm(shots: int) -> str:
    """The arm's name of the untuned large model prompted with `shots` worked examples."""
    return f"large_{shots}_shot"


def large_shots_of(arm: str) -> int:
    """Worked examples in the prompt of the untuned large model; -1 for every other arm."""
    match = _LARGE.fullmatch(arm)
    return int(match[1]) if match else -1


def at_share(arm: str, share: float) -> str:
    """``dss:0.125``: an arm that was trained on a share of the rows."""
    return f"{arm}:{share:g}"


def share_of(arm: str) -> tuple[str, float] | None:
    """``dss:0.125`` → ("dss", 0.125); None for an arm without a share."""
    name, colon, written = arm.rpartition(":")
    try:
        share = float(written) if colon else 0.0
    except ValueError:
        return None
    return (name, share) if 0 < share <= 1 and at_share(name, share) == arm else None


def is_teacher(arm: str) -> bool:
    """Whether the arm is the teacher rather than a student or the base."""
    return arm in TEACHERS or shots_of(arm) >= 0


def label(arm: str) -> str:
    """The arm's name in words, such as ``Teacher, 5 shots`` or ``Response, reverse kl, @2``."""
    for who, shots in (("Teacher", shots_of(arm)), ("Large, untuned", large_shots_of(arm))):
        if shots >= 0:
            return f"{who}, {shots} shot{'' if shots == 1 else 's'}"
    trained = share_of(arm)
    if trained:
        return f"{label(trained[0])}, {100 * trained[1]:g} % of the rows"
    if arm.endswith(f":{ALL_SHARES}"):
        return f"{label(arm.removesuffix(f':{ALL_SHARES}'))}, mean over the shares"
    name, variant, layers = _parts(arm)
    words = [LABELS.get(name, name.replace("_", " ")), variant.replace("_", " ")]
    return ", ".join(filter(None, [*words, f"{layers} layers" if layers else ""]))


def family(arm: str) -> str:
    """``feature/cka@2`` → ``feature``, ``dss:0.5`` → ``dss``; another arm as it is."""
    if large_shots_of(arm) >= 0:
        return "large"
    trained = share_of(arm)
    return _parts(trained[0] if trained else arm)[0]


def _parts(arm: str) -> tuple[str, str, str]:
    """``feature/cka@2`` → ("feature", "cka", "2"); what is not there is empty."""
    name, _, layers = arm.partition("@")
    family, _, variant = name.partition("/")
    return family, variant, layers


def ordered(arms: Iterable[str]) -> list[str]:
    """Students first in the order of `LABELS`, then the base, then the teacher by shots."""
    places = list(LABELS)
    unknown = places.index("shuffled") + 0.5

    def place(arm: str) -> tuple[float, int, str]:
        if shots_of(arm) >= 0:
            return (len(places), shots_of(arm), arm)
        if large_shots_of(arm) >= 0:
            return (places.index("base") + 0.5, large_shots_of(arm), arm)
        name = family(arm)
        return (places.index(name) if name in LABELS else unknown, 0, arm)

    return sorted(arms, key=place)


def strongest_prompt(arms: Iterable[str]) -> str | None:
    """The teacher arm with the most shots, else the recorded one, else None."""
    known = list(arms)
    few_shot = max((arm for arm in known if shots_of(arm) >= 0), key=shots_of, default=None)
    return few_shot or ("teacher_recorded" if "teacher_recorded" in known else None)
