"""The real pipeline, end to end, on a tiny student and recorded answers: every step for real."""

import json
from pathlib import Path

import pytest

from pipestill import pipelines
from pipestill.pipelines.local import run_local

WORDS = ("red", "blue", "green", "small", "large")


def tiny_student(folder: Path) -> Path:
    """A T5 of 50,000 parameters with a tokenizer of the test's own words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    special = ["<pad>", "</s>", "<unk>"]
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel()
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    core.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recorded(folder: Path) -> tuple[Path, Path]:
    """Forty equations with recorded answers, some of them wrong or cut off."""
    rows, answers = [], []
    for i in range(40):
        a, b = 3 + i, 2 + i % 7
        question = f"A {WORDS[i % 5]} box holds {a} pens and {b} are taken.\nHow many are left?"
        rows.append({"input": question, "label": f"( {a}.0 - {b}.0 )"})
        sign = "+" if i % 8 == 0 else "-"
        text = f"There are {a} pens. {b} are taken away. The answer is ({a} {sign} {b})."
        answers.append(text[:40] if i % 10 == 3 else text)
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "answers.json").write_text(json.dumps(answers))
    return folder / "rows.json", folder / "answers.json"


@pytest.mark.slow
def test_from_raw_rows_to_a_served_student(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPESTILL_CODE_VERSION", "1")  # the checkout may change under the test
    rows, answers = recorded(tmp_path)
    parameters = {
        "dataset_uri": str(rows),
        "data_format": "dss_svamp",
        "dedupe": False,
        "eval_fraction": 0.3,
        "student_model_reference": str(tiny_student(tmp_path / "student")),
        "teacher_model_reference": "recorded",
        "teacher_backend": "replay",
        "teacher_replay_uri": str(answers),
        "teacher_prompt": "svamp.v1",
        "teacher_audit_rows": -1,
        "teacher_min_success": 0.5,
        "shards": ["0/2", "1/2"],
        "runs": ["dss:0", "label_only:0", "shuffled:0"],
        "train_steps": 2,
        "batch_size": 4,
        "max_output_tokens": 64,
        "eval_shots": "5",
        "latency_rows": 1,
        "deploy_dir": str(tmp_path / "served"),
    }
    graph, lines = pipelines.build("distill_step_by_step"), []
    summary = run_local(graph, parameters, tmp_path / "run", say=lines.append)

    assert summary["verdict"] in ("better", "worse", "cannot_tell")
    for arm in ("dss", "label_only", "shuffled", "teacher_few_shot", "base"):
        assert {"accuracy", "ci95", "params", "p50_ms", "prompt_tokens"} <= set(
            summary["arms"][arm]
        )
    assert summary["config"]["train_steps"] == 2
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "served" / "model.safetensors").exists()
    assert any("teacher label accuracy" in line for line in lines)

    screen = "\n".join(lines)
    for step in ("teacher_label 0/2", "rationale_extract 1", "rationale_extract 2", "deploy"):
        assert f"{step}: done in" in screen
    assert (tmp_path / "run" / "logs" / "rationale_extract.2.log").exists()

    lines.clear()
    again = run_local(graph, parameters, tmp_path / "run", say=lines.append)
    assert again["steps"] == {"ran": 1, "cached": summary["steps"]["ran"] - 1}
    assert again["arms"] == summary["arms"]
    assert "rationale_extract 2: cached" in "\n".join(lines)
