"""Every local pipeline with settings so small that a run takes seconds.

A pipeline that is not in `CONFIGURATIONS` is reported as not covered.
"""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kill_test import WORDS
from benchmarks.soak.hostile import TEXTS

ONE = threading.Lock()
ODD = [text for text in TEXTS if text.isprintable()]


@dataclass(frozen=True)
class Place:
    """Where a run finds its inputs and puts what lies outside its own folder."""

    inputs: Path
    out: Path
    teacher: dict[str, Any]  # the teacher's parameters: a server of ours

    def file(self, name: str, rows: Sequence[dict[str, Any]]) -> str:
        """A file of rows, written once."""
        path = self.inputs / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def beside(self, name: str) -> str:
        """A place of this run's own."""
        return str(self.out.with_name(f"{self.out.name}-{name}"))


TRAINING = {"train_steps": 12, "batch_size": 4, "checkpoint_interval": 2, "evaluation_interval": 4,
            "max_output_tokens": 16, "latency_rows": 1, "precision": "fp32"}  # fmt: skip


def make_model(folder: Path, kind: str = "t5") -> str:
    """A model of some ten thousand weights whose tokenizer knows every byte."""
    with ONE:  # transformers imports its classes when asked, which two threads cannot do at once
        return _make_model(folder, kind)


def _make_model(folder: Path, kind: str) -> str:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    if (folder / "config.json").exists():
        return str(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "</s>", *letters]
    inner = Tokenizer(models.BPE(vocab={name: at for at, name in enumerate(names)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if kind == "t5":
        inner.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    ends: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **ends).save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "vocab_size": len(names)}
    model: Any
    if kind == "t5":
        model = T5ForConditionalGeneration(
            T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.1,
                     decoder_start_token_id=0, **ids)
        )  # fmt: skip
    else:
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, bos_token_id=1,
                        num_attention_heads=2, max_position_embeddings=512, **ids)
        )  # fmt: skip
    model.save_pretrained(folder)
    return str(folder)


def _labelled(count: int, name: str = "d") -> list[dict[str, Any]]:
    """Rows with a colour as the label; the first have texts that look like something else."""
    return [
        {
            "id": f"{name}{n}",
            "input_text": f"row:{name}{n}: {ODD[n] if n < len(ODD) else WORDS[n % 3]}",
            "output_text": WORDS[n % 3] if n else "<b>red</b>",
        }
        for n in range(count)
    ]


def _unlabelled(count: int) -> list[dict[str, Any]]:
    return [{"id": f"u{n}", "input_text": f"row:u{n}: so?"} for n in range(count)]


def distill_step_by_step(place: Place) -> dict[str, Any]:
    """Two shards, two students, a teacher behind a server."""
    return {
        **TRAINING, **place.teacher,
        "dataset_uri": place.file("dss.jsonl", [*_labelled(30), *_unlabelled(16)]),
        "student_model_reference": make_model(place.inputs / "t5"),
        "teacher_model_reference": "bad", "teacher_shots": 1, "teacher_audit_rows": 4,
        "teacher_min_success": 0.0,
        "eval_fraction": 0.3, "shards": ["0/2", "1/2"], "runs": ["dss:0", "label_only:0"],
        "eval_shots": "0", "rationale_require_agreement": False, "rationale_drop_leaks": False,
        "deploy_model": True, "title": "Distilled, with care",
    }  # fmt: skip


def distill(place: Place) -> dict[str, Any]:
    """A teacher that is tuned first, its probabilities stored, two students."""
    return {
        **TRAINING,
        "dataset_uri": place.file("distill.jsonl", _labelled(30)),
        "teacher_model_reference": make_model(place.inputs / "teacher"),
        "student_model_reference": make_model(place.inputs / "t5"),
        "teacher_train_steps": 6, "teacher_batch_size": 4, "eval_fraction": 0.3, "top_k": 4,
        "teacher_source": "stored", "runs": ["response:0", "teacher_labels:0"],
    }  # fmt: skip


def supervised_tuning(place: Place) -> dict[str, Any]:
    """One tuned model."""
    return {
        **TRAINING,
        "dataset_uri": place.file("tune.jsonl", _labelled(30)),
        "large_model_reference": make_model(place.inputs / "t5"),
        "eval_fraction": 0.3,
    }


def rlhf(place: Place) -> dict[str, Any]:
    """The embedded base, a few steps; a person's override so that the policy is served."""
    return {
        "preference_dataset": "pocket:preferences", "prompt_dataset": "pocket:prompts",
        "max_rows": 60, "eval_fraction": 0.3, "prompt_sequence_length": 64,
        "target_sequence_length": 20, "reward_model_train_steps": 4, "reward_batch_size": 4,
        "evaluation_interval": 2, "checkpoint_interval": 1,
        "reinforcement_learning_train_steps": 2, "rollout_batch_size": 4,
        "policy_evaluation_interval": 2, "rlhf_eval_rows": 4, "latency_rows": 1, "eval_rows": 8,
        "precision": "fp32", "supervised_dataset": "pocket:replies", "supervised_train_steps": 2,
        "policy_objective": "ppo", "gate_override": "tried by the reliability suite",
    }  # fmt: skip


def evaluate(place: Place) -> dict[str, Any]:
    """Two models and a teacher's few-shot arm behind a server."""
    return {
        **place.teacher,
        "dataset_uri": place.file("evaluate.jsonl", _labelled(24, "e")),
        "models": [f"one={make_model(place.inputs / 't5')}",
                   f"two={make_model(place.inputs / 'llama', 'llama')}"],
        "baseline": "two", "latency_rows": 1, "max_output_tokens": 8,
        "teacher_model_reference": "bad", "eval_shots": "0,1", "title": "Side by side",
    }  # fmt: skip


def batch_predict(place: Place) -> dict[str, Any]:
    """Three shards of answers."""
    return {
        "dataset_uri": place.file("batch.jsonl", _labelled(40, "b")),
        "model_reference": make_model(place.inputs / "llama", "llama"),
        "shards": ["0/3", "1/3", "2/3"], "output_uri": place.beside("answers.jsonl"),
        "batch_size": 1, "max_output_tokens": 16,
    }  # fmt: skip


def retrain(place: Place) -> dict[str, Any]:
    """One tick that trains, and promotes by a person's override."""
    place.file("retrain/rows-2026-01-01.jsonl", _labelled(40, "t"))
    return {
        **TRAINING,
        "dataset_uri": str(place.inputs / "retrain"),
        "retrain_dir": place.beside("book"),
        "evaluation_data_uri": place.file("regression.jsonl", _labelled(10, "g")),
        "large_model_reference": make_model(place.inputs / "t5"),
        "tick_time": "2026-01-05T03:00:00Z", "min_new_rows": 20, "least_new_rows": 10,
        "eval_fraction": 0.3, "gate_override": "tried by the reliability suite",
    }  # fmt: skip


def claims(place: Place) -> dict[str, Any]:
    """Two arms at two numbers of rows, on the embedded task and models."""
    return {
        "dataset_uri": "pocket:teacher", "evaluation_data_uri": "pocket:eval", "max_rows": 24,
        "max_context_length": "96", "max_output_tokens": 24, "teacher_prompt": "refund_desk.v2",
        "teacher_shots": 2, "teacher_audit_rows": 2, "teacher_min_success": 0.0,
        "arms": ["finetune", "dss"], "shares": "0.5,1", "seeds": "0", "learning_rates": "0.001",
        "train_steps": 3, "batch_size": 4, "checkpoint_interval": 1, "tune_train_steps": 3,
        "tune_batch_size": 4, "eval_shots": "0,2", "eval_rows": 8, "latency_rows": 1,
        "precision": "fp32",
    }  # fmt: skip


CONFIGURATIONS: dict[str, Callable[[Place], dict[str, Any]]] = {
    item.__name__: item
    for item in (distill_step_by_step, distill, supervised_tuning, rlhf, evaluate, batch_predict,
                 retrain, claims)
}  # fmt: skip
