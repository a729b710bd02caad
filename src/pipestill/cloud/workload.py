"""What a run will work on: the real rows, counted and measured, and the models with their sizes.

The rows go through the same preparation as in the run, so that what would stop it there is known
before anything is paid for. Of very large data the first rows stand for all.
"""

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipestill.cloud.pipeline_steps import Step
from pipestill.errors import UserError

MOST_ROWS = 50_000  # source rows that are prepared; beyond, the first ones stand for all
SAMPLE = 1_000  # rows that are tokenised, evenly spread
TOKENS_A_WORD = 1.4  # English in a vocabulary of about 32,000 pieces; used where no tokenizer is

Count = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The prepared data. `scale` is above 1 where a part stands for all.

    `pairs` are preference rows to train on, `prompts` those that a policy answers. The texts are a
    sample of the training rows.
    """

    train: int = 0
    held_out: int = 0
    unlabelled: int = 0
    read: int = 0
    rejected: int = 0
    pairs: int = 0
    prompts: int = 0
    scale: float = 1.0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model as the estimate needs it. `parameters` is None where its size is not known.

    `token` and `pair` are operations of one training step: of a token, and of two tokens that meet
    in attention (Chowdhery et al. 2022, appendix B); of encoder and decoder together where
    `two_stacks` is false, else of each. `head` is the LM head's, at tokens with loss.
    """

    reference: str
    parameters: int | None
    two_stacks: bool = False
    encoder: float = 0.0
    decoder: float = 0.0
    head: float = 0.0
    encoder_pair: float = 0.0
    decoder_pair: float = 0.0
    cross_pair: float = 0.0
    note: str = ""

    def train_flops(self, source: float, target: float) -> float:
        """Operations of one row, forward and backward, all weights trained."""
        if self.two_stacks:
            found = self.encoder * source + self.encoder_pair * source**2
            found += (self.decoder + self.head) * target + self.decoder_pair * target**2
            return found + self.cross_pair * source * target
        whole = source + target
        return self.decoder * whole + self.decoder_pair * whole**2 + self.head * target

    def read_flops(self, source: float, target: float = 0.0) -> float:
        """Operations of one row forward only: a third."""
        return self.train_flops(source, target) / 3


@dataclass
class Workload:
    """Everything the estimators ask for: rows, counters and models, each found once."""

    parameters: Mapping[str, Any]
    rows: Rows = field(default_factory=Rows)
    offline: bool = False
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tokenizers: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)

    def counter(self, reference: str) -> Count:
        """Counts tokens as the model of `reference` does; words × 1.4 where it cannot be had."""
        from pipestill.data import lengths

        tokenizer = self.tokenizer(reference)
        if tokenizer is not None:
            return lambda texts: lengths.count_tokens(tokenizer, texts)
        return lambda texts: [round(len(text.split()) * TOKENS_A_WORD) + 1 for text in texts]

    def tokenizer(self, reference: str) -> Any:
        """The tokenizer, looked for once; None where it cannot be had here, which is noted."""
        if reference not in self.tokenizers:
            self.tokenizers[reference] = self._tokenizer(reference)
        return self.tokenizers[reference]

    def mean_tokens(self, reference: str, texts: Sequence[str]) -> float:
        """Mean tokens of texts; 0 where there are none."""
        counts = self.counter(reference)(texts) if texts else []
        return sum(counts) / len(counts) if counts else 0.0

    def model(self, reference: str) -> Model:
        """The model's size and costs; what is wrong with the name becomes a problem."""
        if reference not in self.models:
            self.models[reference] = self._model(reference)
        return self.models[reference]

    def say(self, note: str) -> None:
        if note and note not in self.notes:
            self.notes.append(note)

    def wrong(self, problem: str) -> None:
        if problem and problem not in self.problems:
            self.problems.append(problem)

    def _tokenizer(self, reference: str) -> Any:
        from pipestill.data import lengths

        why = "offline" if self.offline and is_hub_name(reference) else ""
        if reference and not why:
            try:
                return lengths.load(reference)
            except UserError as error:
                why = f"its tokenizer cannot be loaded here ({error.code})"
        if reference:
            self.say(f"{reference}: {why}; tokens are words × {TOKENS_A_WORD}")
        return None

    def _model(self, reference: str) -> Model:
        try:
            found = model_of(reference)
        except UserError as error:
            self.wrong(str(error))
            return Model(reference=reference, parameters=None)
        self.say(found.note)
        return found


def is_hub_name(reference: str) -> bool:
    """Whether a model lies neither in the package nor in a folder here."""
    from pipestill.models.counting import local_folder

    return local_folder(reference) is None


def model_of(reference: str) -> Model:
    """A model's costs: exact from a local folder's configuration, else from its size.

    Without a configuration every parameter counts 6 operations a token (Kaplan et al. 2020), the
    two stacks of an encoder-decoder count half each, and attention's depth × width is guessed.

    Raises:
        UserError: ``MODEL_UNKNOWN``, ``MODEL_CONFIG``, ``WEIGHTS_BROKEN``.
    """
    from pipestill.models.catalogue import describe
    from pipestill.models.memory import count, depth_times_width

    entry = describe(reference)
    two_stacks = entry.architecture == "encoder-decoder"
    if not entry.parameters:
        note = f"{reference}: its size is not known, so its computing is not counted"
        return Model(reference=reference, parameters=None, two_stacks=two_stacks, note=note)
    if not is_hub_name(reference):
        return _exact(reference, entry.parameters)
    weights = 6.0 * entry.parameters / (2 if two_stacks else 1)
    pair = 12.0 * depth_times_width(entry.parameters, entry.architecture)
    split = ", half in each stack" if two_stacks else ""
    return Model(
        reference=reference,
        parameters=entry.parameters,
        two_stacks=two_stacks,
        encoder=weights if two_stacks else 0.0,
        decoder=weights,
        encoder_pair=pair if two_stacks else 0.0,
        decoder_pair=pair,
        cross_pair=pair if two_stacks else 0.0,
        note=f"{reference}: {count(entry.parameters)} parameters from the catalogue{split}",
    )


def _exact(reference: str, parameters: int) -> Model:
    from pipestill.models.loading import outline
    from pipestill.training.flops import costs_of

    loaded = outline(reference)
    costs = costs_of(loaded.model)
    return Model(
        reference=reference,
        parameters=parameters,
        two_stacks=loaded.is_encoder_decoder,
        encoder=costs.encoder + costs.cross,
        decoder=costs.decoder,
        head=costs.head,
        encoder_pair=costs.encoder_pair,
        decoder_pair=costs.decoder_pair,
        cross_pair=costs.cross_pair,
    )


def read_rows_of(steps: Sequence[Step], work: Workload) -> None:
    """Fills `work.rows` from the pipeline's own data steps; what stops them becomes a problem."""
    for step in steps:
        reader = READERS.get(step.component)
        if reader:
            try:
                work.rows = reader(step.arguments, work)
            except UserError as error:
                listed = "; all are listed in "  # a temporary file, gone by now
                work.wrong(str(error).split(listed)[0])


def _prepared(arguments: Mapping[str, Any], work: Workload) -> Rows:
    import dataclasses

    from pipestill.config import DataConfig, pick
    from pipestill.data.prepare import prepare
    from pipestill.records import Example, read_jsonl

    config = pick(DataConfig, arguments)
    uri = str(arguments["dataset_uri"])
    scale = _scale(uri, config.data_format, config.max_rows)
    if scale > 1:
        config = dataclasses.replace(config, max_rows=MOST_ROWS)
        work.say(f"{uri}: the first {MOST_ROWS:,} rows stand for all {scale * MOST_ROWS:,.0f}")
    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder, "train.jsonl")
        with _silent():
            summary = prepare(
                uri,
                str(arguments.get("evaluation_data_uri", "")),
                config=config,
                tokenizer_reference=_measuring(work, arguments, "student_model_reference"),
                train_path=str(train),
                evaluation_path=str(Path(folder, "eval.jsonl")),
                rejects_path=str(Path(folder, "rejects.jsonl")),
            )
        examples = _spread(list(read_jsonl(train, Example)))
    held_out = int(summary["rows_eval"])
    return Rows(
        train=round(int(summary["rows_train"]) * scale),
        held_out=held_out if arguments.get("evaluation_data_uri") else round(held_out * scale),
        unlabelled=round(int(summary["rows_unlabelled"]) * scale),
        read=round(int(summary["rows_read"]) * scale),
        rejected=round(int(summary["rows_rejected"]) * scale),
        scale=scale,
        inputs=tuple(row.input_text for row in examples),
        outputs=tuple(row.output_text for row in examples if row.output_text is not None),
    )


def _preferences(arguments: Mapping[str, Any], work: Workload) -> Rows:
    from pipestill.config import PreferenceConfig, pick
    from pipestill.data.preferences import prepare
    from pipestill.records import Preference, read_jsonl

    names = ("preferences", "preference_evaluation", "prompts", "prompt_evaluation", "rejects")
    with tempfile.TemporaryDirectory() as folder:
        paths = {f"{name}_path": str(Path(folder, f"{name}.jsonl")) for name in names}
        with _silent():
            prepare(
                str(arguments["preference_dataset_uri"]),
                str(arguments.get("prompt_dataset_uri", "")),
                config=pick(PreferenceConfig, arguments),
                tokenizer_reference=_measuring(work, arguments, "large_model_reference"),
                eval_dataset_uri=str(arguments.get("eval_dataset_uri", "")),
                **paths,
            )
        pairs = list(read_jsonl(paths["preferences_path"], Preference))
        counts = {name: _lines(paths[f"{name}_path"]) for name in names}
    sample = _spread(pairs)
    return Rows(
        pairs=len(pairs),
        prompts=counts["prompts"],
        held_out=counts["prompt_evaluation"],
        read=len(pairs) + counts["preference_evaluation"] + counts["rejects"],
        rejected=counts["rejects"],
        inputs=tuple(pair.input_text for pair in sample),
        outputs=tuple(text for pair in sample for text in (pair.candidate_0, pair.candidate_1)),
    )


READERS: dict[str, Callable[[Mapping[str, Any], Workload], Rows]] = {
    "data_prep": _prepared,
    "preference_prep": _preferences,
}


def _scale(uri: str, data_format: str, max_rows: int) -> float:
    """How many times `MOST_ROWS` there are, at least 1. Large files are counted to their end."""
    from pipestill.data.read import read_records

    records = read_records(uri, data_format)
    head = sum(1 for _ in itertools.islice(records, MOST_ROWS))
    rest = sum(1 for _ in records) if head == MOST_ROWS else 0
    whole = min(head + rest, max_rows) if max_rows else head + rest
    return max(1.0, whole / MOST_ROWS)


def _measuring(work: Workload, arguments: Mapping[str, Any], name: str) -> str:
    """The model whose tokenizer measures rows, or "" (words) where it cannot be had here."""
    reference = str(arguments.get(name, ""))
    return reference if work.tokenizer(reference) is not None else ""


def _spread(rows: list[Any]) -> list[Any]:
    step = max(1, len(rows) // SAMPLE)
    return rows[::step][:SAMPLE]


def _lines(path: str) -> int:
    with open(path, "rb") as source:
        return sum(1 for _ in source)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
