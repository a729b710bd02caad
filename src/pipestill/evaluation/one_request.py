"""One request at a time: an arm that can be opened and asked again, for latency and for memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipestill.config import TeacherConfig
from pipestill.evaluation.latency import time_rows
from pipestill.evaluation.student_arms import TOGETHER_BYTES
from pipestill.evaluation.teacher_arms import full_prompt, one_line
from pipestill.generation.prompts import load_prompt
from pipestill.generation.teacher import Decoding, open_teacher
from pipestill.models.student import Student

Caller = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An arm of this process, as it is asked.

    `prompt` names the prompt file of a model that is prompted with `shots` worked examples; "" is
    a model of ours, which renders the row itself.
    """

    arm: str
    reference: str
    max_new_tokens: int
    prompt: str = ""
    shots: int = 0

    @property
    def model(self) -> tuple[str, str]:
        """What arms must have in common to be asked with one model in memory."""
        return self.reference, self.prompt


def open_arms(arms: Sequence[Asked]) -> dict[str, Caller]:
    """Arm → a function that answers one input text, whole prompt and no cache; one model for all.

    Args:
        arms: of one `Asked.model`.

    Raises:
        UserError: what loading the model or the prompt raises.
    """
    first = arms[0]
    if not first.prompt:
        student = Student.load(first.reference)
        return {arm.arm: _rendering(student, arm.max_new_tokens) for arm in arms}
    prompt = load_prompt(first.prompt)
    decoding = Decoding(stop=prompt.stop, max_new_tokens=first.max_new_tokens, temperature=0.0)
    config = TeacherConfig(
        model_reference=first.reference,
        prompt=first.prompt,
        max_new_tokens=first.max_new_tokens,
        batch_size=1,
    )
    teacher = open_teacher(config, decoding)
    asked = {arm.arm: full_prompt(teacher, prompt.prefix(arm.shots)) for arm in arms}
    return {arm: _questioned(prompt.ask, answer) for arm, answer in asked.items()}


def _rendering(student: Student, limit: int) -> Caller:
    return lambda text: student.answer([text], batch_size=1, max_new_tokens=limit)


def _questioned(ask: Callable[[str], str], answer: Caller) -> Caller:
    return lambda text: answer(ask(text))


def time_arms(
    arms: Sequence[Asked], inputs: Sequence[str], sizes: Mapping[str, int]
) -> dict[str, list[float]]:
    """Milliseconds per input of each arm at batch size 1, without a prefix cache.

    All arms take turns on every input where their models fit into memory together
    (`TOGETHER_BYTES`); otherwise those of one model do. An arm that fails is left out, and says so.

    Args:
        arms: who is asked.
        inputs: texts of the rows.
        sizes: reference → bytes of its weights.
    """
    models: dict[tuple[str, str], list[Asked]] = {}
    for arm in arms:
        models.setdefault(arm.model, []).append(arm)
    together = sum(sizes.get(reference, 0) for reference, _ in models) <= TOGETHER_BYTES
    groups = [list(models.values())] if together else [[found] for found in models.values()]
    spent: dict[str, list[float]] = {}
    for group in groups:
        failed: dict[str, str] = {}
        callers: dict[str, Caller] = {}
        for one_model in group:
            try:
                opened = open_arms(one_model)
            except Exception as error:
                failed |= {arm.arm: one_line(error) for arm in one_model}
                continue
            callers |= {arm: _guarded(arm, answer, failed) for arm, answer in opened.items()}
        times = time_rows(callers, inputs)
        spent |= {arm: times[arm] for arm in times if arm not in failed}
        for name, reason in failed.items():
            print(f"evaluate: {name}: not timed: {reason}", flush=True)
    return spent


def _guarded(arm: str, answer: Caller, failed: dict[str, str]) -> Caller:
    """The same function until it fails; its failure is noted and costs no other arm its times."""

    def call(text: str) -> object:
        if arm in failed:
            return None
        try:
            return answer(text)
        except Exception as error:
            failed[arm] = one_line(error)
            return None

    return call
