"""Raw rows → preference pairs and prompts, to train on and held out. Component `preference_prep`.

Training and held-out rows go through the same functions, from the same reader to the same record.
"""

import hashlib
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipestill.config import PreferenceConfig
from pipestill.data import lengths, pairs, prompts
from pipestill.data.convert_pairs import CANDIDATES, is_pair
from pipestill.data.pair_report import (
    Log,
    Sides,
    Summary,
    check_rows,
    check_settings,
    check_sides,
    summarise,
    tell,
)
from pipestill.data.rows import Convert, Row, read_with
from pipestill.records import write_jsonl


def prepare(
    preference_dataset_uri: str,
    prompt_dataset_uri: str,
    *,
    config: PreferenceConfig,
    tokenizer_reference: str,
    preferences_path: str,
    preference_evaluation_path: str,
    prompts_path: str,
    prompt_evaluation_path: str,
    rejects_path: str,
    eval_dataset_uri: str = "",
) -> Summary:
    """Reads, validates, deduplicates, splits by prompt, swaps sides and writes.

    No prompt stands on both sides, in pairs or prompts. For half of the rows, by a hash of their
    id, the candidates change places, so that the place of an answer says nothing of its worth.
    ``config.instruction`` is not written into the rows (the model's renderer puts it there); it
    counts in their lengths.

    Args:
        preference_dataset_uri: see `pipestill.data.source.list_files`; the layouts of
            `pipestill.data.convert_pairs`.
        prompt_dataset_uri: rows with input_text or messages; "" = the prompts of the pairs.
        tokenizer_reference: a model whose tokenizer cuts and measures; "" counts words.
        preferences_path, preference_evaluation_path: JSONL of `Preference`.
        prompts_path, prompt_evaluation_path: JSONL of `Example` without answers.
        rejects_path: JSONL of `BadRow`, written before any error about the rows is raised.
        eval_dataset_uri: held-out pairs, prompts or both; what it lacks is split off by hash.

    Returns:
        Flat counts, shares, digests and token-length percentiles.

    Raises:
        UserError: what reading raises; ``DATA_SETTING``, ``DATA_EVAL_ROW``,
            ``DATA_NO_VALID_ROWS``, ``DATA_TOO_MANY_REJECTS``, ``DATA_NO_TRAIN_ROWS``,
            ``DATA_NO_EVAL_ROWS``.
    """
    check_settings(config, splits=not eval_dataset_uri)
    tokenizer = lengths.load(tokenizer_reference)
    log = Log()
    sides = _gathered(preference_dataset_uri, prompt_dataset_uri, eval_dataset_uri, config, log)
    sides.pairs = _telling(sides.pairs, tokenizer, config, log)
    sides.held_pairs = _telling(sides.held_pairs, tokenizer, config, log)
    write_jsonl(rejects_path, log.rejects)
    check_rows(log, len(sides.pairs), config, rejects_path)
    _part(sides, prompt_dataset_uri, eval_dataset_uri, config, log)
    check_sides(sides, eval_dataset_uri)
    used: set[str] = set()
    trained = [pairs.record(row, used, config.split_seed) for row in sides.pairs]
    held = [pairs.record(row, used, config.split_seed) for row in sides.held_pairs]
    used_prompts: set[str] = set()
    files: dict[str, tuple[str, list[Any]]] = {
        "preferences": (preferences_path, trained),
        "preference_evaluation": (preference_evaluation_path, held),
        "prompts": (prompts_path, prompts.examples(sides.prompts, used_prompts)),
        "prompt_evaluation": (
            prompt_evaluation_path,
            prompts.examples(sides.held_prompts, used_prompts),
        ),
    }
    summary = summarise(sides, [*trained, *held], log, config)
    for name, (path, rows) in files.items():
        write_jsonl(path, rows)
        summary[f"{name}_digest"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    summary["tokenizer_fingerprint"] = lengths.fingerprint(tokenizer)
    tell(summary, rejects_path)
    return summary


def _gathered(
    pair_uri: str, prompt_uri: str, eval_uri: str, config: PreferenceConfig, log: Log
) -> Sides:
    """What the three references hold, nothing split off yet."""
    limit = config.max_rows
    train = _read(pair_uri, pairs.pair_fields, limit, "pairs", log)
    asked = _read(prompt_uri, prompts.prompt_fields, limit, "prompts", log) if prompt_uri else []
    held = _read(eval_uri, _any_fields, 0, "eval", log) if eval_uri else []
    return Sides(
        train,
        [row for row in held if "choice" in row.fields],
        _each_once(asked, log),
        _each_once([row for row in held if "choice" not in row.fields], log),
    )


def _read(uri: str, convert: Convert, max_rows: int, source: str, log: Log) -> list[Row]:
    rows: list[Row] = []
    bad = log.bad.setdefault(source, [])
    found = read_with(uri, convert, "preference", max_rows)
    for item in tqdm(found, desc=f"reading {source}", unit=" rows", disable=None):
        log.counts[f"{source}_read"] += 1
        if isinstance(item, Row):
            rows.append(item)
        else:
            (log.aside if item.reason in pairs.SET_ASIDE else bad).append(item)
    return rows


def _any_fields(value: dict[str, Any]) -> list[dict[str, Any]]:
    """A pair, or a prompt where the row has none of a pair's fields."""
    return pairs.pair_fields(value) if is_pair(value) else prompts.prompt_fields(value)


def _each_once(rows: list[Row], log: Log) -> list[Row]:
    kept = prompts.each_once(rows)
    log.counts["prompt_duplicates_dropped"] += len(rows) - len(kept)
    return kept


def _telling(rows: list[Row], tokenizer: Any, config: PreferenceConfig, log: Log) -> list[Row]:
    """Each pair once, without those that contradict or that are the same to the model."""
    kept, dropped, contradicting = pairs.distinct(rows)
    log.counts["duplicates_dropped"] += dropped
    for row in contradicting:
        log.set_aside(row, "choice", "contradictory_pair")
    opening = f"{config.instruction}\n\n" if config.instruction else ""
    asked = [opening + row.fields["input_text"] for row in kept]
    log.prompt_tokens += lengths.count_tokens(tokenizer, asked)
    answers = [row.fields[name] for row in kept for name in CANDIDATES]
    heads, counts = pairs.cut_answers(tokenizer, answers, config.target_sequence_length)
    log.candidate_tokens += counts
    same = [first == second for first, second in zip(heads[::2], heads[1::2], strict=True)]
    for row, equal in zip(kept, same, strict=True):
        if equal:
            log.set_aside(row, "candidate_1", "same_after_cut")
    return [row for row, equal in zip(kept, same, strict=True) if not equal]


def _part(sides: Sides, prompt_uri: str, eval_uri: str, config: PreferenceConfig, log: Log) -> None:
    """Splits off what is not given, then takes every held-out prompt out of the training side."""
    share = config.eval_fraction, config.split_seed
    if not sides.held_pairs:
        check_settings(config, splits=True)
        sides.pairs, sides.held_pairs = prompts.hash_split(sides.pairs, *share)
    if prompt_uri and not eval_uri:
        sides.prompts, sides.held_prompts = prompts.hash_split(sides.prompts, *share)
    if not sides.held_prompts:
        sides.held_prompts = prompts.of_pairs(sides.held_pairs)
    held = {prompts.key_of(row) for row in (*sides.held_pairs, *sides.held_prompts)}
    clean = prompts.without(sides.pairs, held)
    log.counts["leaks_dropped"] = len(sides.pairs) - len(clean)
    sides.pairs = clean
    asked = prompts.without(sides.prompts, held)
    log.counts["prompt_leaks_dropped"] = len(sides.prompts) - len(asked)
    sides.prompts = asked if prompt_uri else prompts.of_pairs(clean)
