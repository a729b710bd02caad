"""Other people's schemas → our rows: a table of functions, one source row to any number of rows.

Every function takes one object and returns rows with the fields ``input_text``, ``output_text``
and, where there, ``rationale`` and ``id``. It raises `RowProblem` for a row it cannot use.
The layouts of the three ``dss_`` formats are those of Distilling step-by-step (Hsieh et al. 2023,
arXiv 2305.02301), so that the authors' recorded teacher outputs fit the prompts.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pipestill.data.convert_chat import chat_messages, sgd_dialogue
from pipestill.data.convert_pairs import preference
from pipestill.data.raw import RowProblem, missing

Row = dict[str, Any]

ESNLI_LABELS = {"0": "entailment", "1": "neutral", "2": "contradiction"}
_EQUATION = re.compile(r"[-+*/().\d\s]+")


def text(row: Mapping[str, Any], field: str) -> str:
    """The string in `field`, which must be there and not blank."""
    if field not in row:
        raise missing(field, row)
    value = row[field]
    if not isinstance(value, str):
        raise RowProblem(field, "wrong_type", value)
    if not value.strip():
        raise RowProblem(field, "empty_input", value)
    return value


def dss_cqa(row: Mapping[str, Any]) -> list[Row]:
    """CommonsenseQA with CoS-E: question, five choices, answer, abstractive_explanation."""
    if "choices" not in row:
        raise missing("choices", row)
    choices = row["choices"]
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise RowProblem("choices", "wrong_type", choices)
    lines = [f"({chr(97 + place)}) {choice}" for place, choice in enumerate(choices)]
    answer = row.get("answer")
    if answer is not None and answer not in choices:
        raise RowProblem("answer", "unknown_label", answer)
    question = "\n".join([text(row, "question"), "Answer Choices:", *lines])
    return [
        {
            "input_text": question,
            "output_text": answer,
            "rationale": row.get("abstractive_explanation"),
            "id": row.get("id"),
        }
    ]


def dss_esnli(row: Mapping[str, Any]) -> list[Row]:
    """e-SNLI: premise, hypothesis, label 0 1 2 (or its name), explanation_1."""
    label = row.get("label")
    if label not in (None, "", *ESNLI_LABELS.values()):
        number = str(label).removesuffix(".0") if isinstance(label, str | int | float) else ""
        if number not in ESNLI_LABELS:
            raise RowProblem("label", "unknown_label", label)
        label = ESNLI_LABELS[number]
    sentences = f"Premise: {text(row, 'premise')}\nHypothesis: {text(row, 'hypothesis')}"
    return [{"input_text": sentences, "output_text": label, "rationale": row.get("explanation_1")}]


def dss_svamp(row: Mapping[str, Any]) -> list[Row]:
    """SVAMP: input, label = an equation such as ``( 84.0 / 2.0 )``, which becomes ``84 / 2``."""
    label = row.get("label")
    if isinstance(label, str) and label.strip():
        label = tidy_equation(label)
    return [{"input_text": text(row, "input"), "output_text": label}]


def tidy_equation(equation: str) -> str:
    """Writes whole numbers without ``.0``, even spaces, and no brackets around the whole.

    Raises:
        RowProblem: ``bad_equation`` where other characters occur or brackets do not match.
    """
    known = _EQUATION.fullmatch(equation) and re.search(r"\d", equation)
    if not known or equation.count("(") != equation.count(")"):
        raise RowProblem("label", "bad_equation", equation)
    short = re.sub(r"(\d+)\.0+(?!\d)", r"\1", equation)
    spaced = re.sub(r"\s*([-+*/])\s*", r" \1 ", " ".join(short.split()))
    tidy = re.sub(r"\(\s+", "(", re.sub(r"\s+\)", ")", spaced)).strip()
    while _wrapped(tidy):
        tidy = tidy[1:-1].strip()
    return tidy


def _wrapped(equation: str) -> bool:
    """Whether the first bracket closes at the very end."""
    depth = 0
    for place, char in enumerate(equation):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return place == len(equation) - 1 and place > 0
    return False


def gsm8k(row: Mapping[str, Any]) -> list[Row]:
    """GSM8K: question, answer = worked text, then ``####`` and the number."""
    question, answer = text(row, "question"), row.get("answer")
    if answer is None:
        return [{"input_text": question}]
    worked, mark, number = text(row, "answer").rpartition("####")
    if not mark or not number.strip():
        raise RowProblem("answer", "no_answer_mark", answer)
    return [
        {
            "input_text": question,
            "output_text": number.strip().replace(",", ""),
            "rationale": re.sub(r"<<[^<>]*>>", "", worked).strip(),
        }
    ]


def banking77(row: Mapping[str, Any]) -> list[Row]:
    """Banking77: text, category."""
    return [{"input_text": text(row, "text"), "output_text": row.get("category")}]


def nl2bash(row: Mapping[str, Any]) -> list[Row]:
    """NL2Bash: input_text and output_text, or the names of its own JSON: invocation and cmd."""
    if "invocation" in row:
        return [{"input_text": text(row, "invocation"), "output_text": row.get("cmd")}]
    return [{"input_text": text(row, "input_text"), "output_text": row.get("output_text")}]


def humaneval(row: Mapping[str, Any]) -> list[Row]:
    """HumanEval (Chen et al. 2021): prompt, canonical_solution, test and entry_point."""
    entry = text(row, "entry_point")
    if not entry.isidentifier():
        raise RowProblem("entry_point", "wrong_type", entry)
    return [
        {
            "input_text": text(row, "prompt"),
            "output_text": row.get("canonical_solution"),
            "tests": f"{text(row, 'test')}\n\ncheck({entry})\n",
            "id": row.get("task_id"),
        }
    ]


CONVERTERS: dict[str, Callable[[Mapping[str, Any]], list[Row]]] = {
    "dss_cqa": dss_cqa,
    "dss_esnli": dss_esnli,
    "dss_svamp": dss_svamp,
    "chat_messages": chat_messages,
    "sgd_dialogue": sgd_dialogue,
    "preference": preference,
    "banking77": banking77,
    "nl2bash": nl2bash,
    "gsm8k": gsm8k,
    "humaneval": humaneval,
}

# Fields by which a format that was not named can be recognised, most telling first.
MARKS = {
    "preference": {"candidate_0", "candidate_1"},
    "chat_messages": {"messages"},
    "dss_cqa": {"question", "choices"},
    "dss_esnli": {"premise", "hypothesis"},
    "gsm8k": {"question", "answer"},
    "banking77": {"text", "category"},
    "dss_svamp": {"input", "label"},
    "nl2bash": {"invocation", "cmd"},
    "humaneval": {"prompt", "canonical_solution"},
    "sgd_dialogue": {"dialogue_id", "turns"},
}


def likely_format(fields: set[str]) -> str:
    """The converter whose fields these are, or ""."""
    return next((name for name, marks in MARKS.items() if marks <= fields), "")
