"""ROUGE, BLEU, chrF and macro-F1 against other implementations, and what is shown of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.config import EvalConfig, TeacherConfig
from pipestill.evaluation import text_metrics
from pipestill.evaluation.models_run import evaluate_models
from pipestill.evaluation.text_metrics import (
    corpus_scores,
    has_labels,
    macro_f1,
    row_scores,
    score_arms,
    signatures,
)
from pipestill.records import Prediction, write_jsonl
from tests.evaluation import tiny
from tests.evaluation.synthetic import predictions

# Answer, reference, and ROUGE-1, 2 and L (F-measure) by Google's rouge-score 0.1.2, no stemmer.
# The second and third are the example of Lin 2004, section 3: one word order is nearer.
ROUGE = [
    ("the cat sat on the mat", "The cat sat on a mat.", (0.833333, 0.6, 0.833333)),
    ("police kill the gunman", "police killed the gunman", (0.75, 0.333333, 0.75)),
    ("the gunman kill police", "police killed the gunman", (0.75, 0.333333, 0.5)),
    (
        "Wash the pan, dry it; put it away!",
        "Dry the pan and put it away after washing it.",
        (0.777778, 0.375, 0.555556),
    ),
    ("", "Something was expected", (0.0, 0.0, 0.0)),
    ("42 apples", "42", (0.666667, 0.0, 0.666667)),
    ("Über die Brücke", "Ueber die Bruecke", (0.285714, 0.0, 0.285714)),
    (
        "List all files, newest first, and count them",
        "Count the files after listing them newest first",
        (0.625, 0.142857, 0.375),
    ),
]
# The example of sacrebleu's README with its first references alone. Oracle: nltk 3.10.4,
# corpus_bleu on words with the full stop apart, and sentence_chrf with beta=2.
DOGS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
DOG_REFERENCES = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
WORDS = st.lists(st.sampled_from(["a", "b", "cat", "Dog", "é", "."]), max_size=8).map(" ".join)


def test_rouge_is_that_of_rouge_score():
    answers, golds, wanted = zip(*ROUGE, strict=True)
    found = row_scores(answers, golds)
    rows = np.stack([found[name] for name in text_metrics.ROUGE], axis=1)
    assert rows == pytest.approx(np.array(wanted), abs=1e-6)
    whole = corpus_scores(answers, golds)
    assert [whole[name] for name in text_metrics.ROUGE] == pytest.approx(np.mean(wanted, axis=0))


def test_bleu_and_chrf_count_over_all_rows():
    """One long right row outweighs a short wrong one, which the mean of rows does not know."""
    answers, golds = ["a b c d e f g h i j k l", "x"], ["a b c d e f g h i j k l", "y"]
    whole, rows = corpus_scores(answers, golds), row_scores(answers, golds)
    assert rows["bleu"].mean() == pytest.approx(0.5)
    assert whole["bleu"] == pytest.approx(((12 / 13) * 1 * 1 * 1) ** 0.25)
    assert rows["chrf"].mean() == pytest.approx(0.5)
    assert 0.9 < whole["chrf"] < 1


def test_bleu_and_chrf_are_those_of_nltk():
    assert corpus_scores(DOGS, DOG_REFERENCES)["bleu"] == pytest.approx(0.450675, abs=1e-6)
    chrf = row_scores(DOGS, DOG_REFERENCES)["chrf"]
    assert chrf == pytest.approx(np.array([1.0, 0.24738, 0.348372]), abs=1e-4)


def test_macro_f1_is_that_of_scikit_learn():
    """f1_score(gold, said, labels=sorted(set(gold)), average="macro") of scikit-learn 1.9.1."""
    gold = list("aaaaabbbbbccccc")
    assert macro_f1(list("aaabxbbcabccxxa"), gold) == pytest.approx(0.5888888888888889)
    assert macro_f1(["a"] * 15, gold) == pytest.approx(0.16666666666666666)
    assert macro_f1([letter.upper() + "." for letter in gold], gold) == 1.0
    # Accuracy flatters a model that knows the common label alone; macro-F1 does not.
    rare = ["yes"] * 18 + ["no"] * 2
    assert macro_f1(["yes"] * 20, rare) == pytest.approx((2 * 18 / 38) / 2)


def test_labels_are_few_and_come_back():
    assert has_labels(["yes", "No", "no."] * 5)
    assert not has_labels(["yes", "no"] * 4)  # less than 5 rows a label
    assert not has_labels(["yes"] * 50)
    assert not has_labels([f"text {at}" for at in range(50)])
    assert "macro_f1" not in corpus_scores(["a", "b"], ["a", "c"])


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_scores_are_shares_and_do_not_fail(pairs):
    answers, golds = zip(*pairs, strict=True)
    rows, whole = row_scores(answers, golds), corpus_scores(answers, golds)
    assert all(len(values) == len(pairs) for values in rows.values())
    assert all(0 <= value <= 1 + 1e-9 for values in rows.values() for value in values)
    assert all(0 <= value <= 1 + 1e-9 for value in whole.values())
    for at, (answer, _) in enumerate(pairs):
        if not answer.strip():
            assert all(values[at] == 0 for values in rows.values())


def test_rows_must_pair():
    with pytest.raises(ValueError, match="zip"):
        row_scores(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="no rows"):
        corpus_scores([], [])


def test_signatures_name_versions():
    found = signatures()
    assert found["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert found["rouge"].startswith("torchmetrics:")


def said(arm, seed, texts, golds):
    return [
        Prediction(
            id=f"r{at}", arm=arm, seed=seed, input_text="q", gold=gold, output_text=text,
            correct=text == gold, prompt_tokens=1, output_tokens=1,
        )
        for at, (text, gold) in enumerate(zip(texts, golds, strict=True))
    ]  # fmt: skip


def test_arms_that_are_never_right_are_told_apart():
    """Exact match sees nothing here: all three are always wrong, and one is nearly right."""
    golds = [f"put the {at} red boxes on the shelf" for at in range(40)]
    near = [gold.replace("red", "blue") for gold in golds]
    far = ["I do not know"] * 40
    items = [
        *said("base", -1, far, golds),
        *said("near", 0, near, golds),
        *said("near", 1, near, golds),
        *said("far", -1, far, golds),
    ]
    found = score_arms(items, "base")
    assert found["scores"]["near"]["exact"] == found["scores"]["base"]["exact"] == 0
    assert found["scores"]["near"]["rougeL"] == pytest.approx(7 / 8)
    for name in ("rougeL", "chrf"):
        gap = found["score_comparisons"][name]["near"]
        assert 0 < gap["ci95"][0] <= gap["difference"] <= gap["ci95"][1]
        assert (gap["rows_won"], gap["rows_lost"]) == (40, 0)
        assert gap["p_holm"] == pytest.approx(2 * gap["p"])
        assert gap["p_holm"] < 0.01
        none = found["score_comparisons"][name]["far"]
        assert none["difference"] == 0
        assert none["p_holm"] == 1


def test_only_arms_of_the_same_rows_are_compared():
    items = said("base", -1, ["a", "b"], ["a", "c"]) + said("few", -1, ["a"], ["a"])
    found = score_arms(items, "base")
    assert set(found["scores"]) == {"base", "few"}
    assert found["score_comparisons"] == {"rougeL": {}, "chrf": {}}
    assert score_arms(items, "gone")["score_comparisons"]["chrf"] == {}


def test_labels_have_a_macro_f1_in_every_arm():
    found = score_arms(predictions(rows=60), "base")
    assert found["scores"]["dss"]["macro_f1"] > found["scores"]["base"]["macro_f1"] > 0


def test_models_side_by_side_carry_their_scores(tmp_path):
    models = [f"{word}={tiny.base(tmp_path / word, word)}" for word in ("yes", "no")]
    write_jsonl(tmp_path / "rows.jsonl", tiny.rows())
    found = evaluate_models(
        models, [str(tmp_path / "rows.jsonl")], str(tmp_path / "p.jsonl"), baseline="",
        metric="exact", state_dir="", teacher=TeacherConfig(),
        config=EvalConfig(eval_shots="", latency_rows=1),
    )  # fmt: skip
    arms = {name: facts["scores"] for name, facts in found["arms"].items()}
    assert arms["yes"]["exact"] == found["arms"]["yes"]["accuracy"] == pytest.approx(2 / 3)
    assert arms["yes"]["macro_f1"] == pytest.approx(0.4)
    gap = found["score_comparisons"]["rougeL"]["no"]
    assert gap["difference"] == pytest.approx(-1 / 3)
