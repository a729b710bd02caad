"""The power that the gate states: against exact sums, published figures and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipestill.evaluation.gate import CANNOT_TELL, decide, enough_rows, not_inferior, superior
from pipestill.evaluation.gate_pairs import mcnemar_better
from pipestill.evaluation.gate_power import (
    mean_power,
    mean_rows,
    mean_statement,
    null_variance,
    paired_power,
    paired_rows,
    paired_statement,
)
from pipestill.evaluation.gate_slices import more_right, not_fewer_right, paired_interval
from pipestill.evaluation.models_report import models_summary
from pipestill.records import Prediction


def exact_power(rows, discordance, gain, passes):
    """Sums the chance of every (won, lost) that passes."""
    shares = [(discordance + gain) / 2, (discordance - gain) / 2]
    total = 0.0
    for won in range(rows + 1):
        for lost in range(rows - won + 1):
            chance = stats.multinomial.pmf(
                [won, lost, rows - won - lost], rows, [*shares, 1 - sum(shares)]
            )
            if chance > 1e-9 and passes(won, lost):
                total += chance
    return total


def test_connors_formula():
    """n = (z √ψ + z_β √(ψ − δ²))² / δ² (Connor 1987), written out once more."""
    psi, gain = 0.3, 0.1
    z, z_beta = stats.norm.ppf(0.975), stats.norm.ppf(0.8)
    wanted = (z * math.sqrt(psi) + z_beta * math.sqrt(psi - gain**2)) ** 2 / gain**2
    assert paired_rows(psi, gain) == math.ceil(wanted)
    assert paired_power(round(wanted), psi, gain) == pytest.approx(0.8, abs=0.002)


@pytest.mark.parametrize(("rows", "discordance", "gain"), [(60, 0.4, 0.2), (80, 0.3, 0.12)])
def test_formula_against_the_exact_sum(rows, discordance, gain):
    found = exact_power(
        rows, discordance, gain, lambda won, lost: mcnemar_better(won, lost) <= 0.025
    )
    assert paired_power(rows, discordance, gain) == pytest.approx(found, abs=0.04)


def test_formula_of_non_inferiority_against_simulation():
    dice = np.random.default_rng(0)
    rows, discordance, margin = 400, 0.1, 0.05
    drawn = dice.multinomial(rows, [0.05, 0.05, 0.9], size=4000)
    passed = np.mean(
        [paired_interval(rows, int(won), int(lost))[0] > -margin for won, lost, _ in drawn]
    )
    assert paired_power(rows, discordance, 0.0, margin=margin) == pytest.approx(passed, abs=0.03)


def test_at_the_edge_of_the_margin_the_power_is_the_error():
    for margin in (0.0, 0.02, 0.05):
        assert paired_power(500, 0.1, -margin, margin=margin) == pytest.approx(0.025, abs=1e-6)
        assert mean_power(500, 2.0, -margin, margin=margin) == pytest.approx(0.025)
        assert paired_rows(0.1, -margin, margin=margin) is None


@given(st.floats(0.05, 0.9), st.floats(0.1, 0.9), st.integers(20, 2000), st.floats(0, 0.2))
def test_more_rows_and_more_gain_have_more_power(discordance, share, rows, margin):
    gain = discordance * share
    here = paired_power(rows, discordance, gain, margin=margin)
    assert 0 <= here <= 1
    assert paired_power(2 * rows, discordance, gain, margin=margin) >= here
    assert paired_power(rows, discordance, gain / 2, margin=margin) <= here + 1e-9
    needed = paired_rows(discordance, gain, margin=margin)
    assert paired_power(needed, discordance, gain, margin=margin) >= 0.8 - 1e-9
    if needed > 2:
        assert paired_power(needed - 1, discordance, gain, margin=margin) <= 0.8 + 1e-9


def test_impossible_truths_are_refused():
    with pytest.raises(ValueError, match=r"a gain of 0\.2 at a discordance of 0\.1"):
        paired_power(100, 0.1, 0.2)
    assert null_variance(0.1, 0.1, 0.0) == pytest.approx(0.2)


def test_power_of_a_mean_is_the_z_tests():
    wanted = stats.norm.sf(stats.norm.ppf(0.975) - 0.3 / 1.5 * math.sqrt(150))
    assert mean_power(150, 1.5, 0.3) == pytest.approx(wanted)
    assert mean_power(mean_rows(1.5, 0.3), 1.5, 0.3) >= 0.8
    assert mean_rows(1.5, 0.0) is None


def test_the_sentence_states_power_and_rows():
    found = paired_statement(74, 5, 4)
    assert found["sentence"] == (
        "with 74 rows a gain of 3 points would be found in 11 % of runs; 80 % needs about "
        "1,200 rows"
    )
    assert found["discordance"] == pytest.approx(10 / 76)
    assert found["rows_for_80"] == paired_rows(10 / 76, 0.03)
    equal = paired_statement(200, 5, 5, gain=0.0, margin=0.02)["sentence"]
    assert equal.startswith("with 200 rows an equal model would pass in 20 % of runs")
    enough = paired_statement(20_000, 50, 50)["sentence"]
    assert enough.endswith("in 100 % of runs")
    nothing = paired_statement(0, 0, 0)
    assert nothing["power"] < 0.05
    assert mean_statement(74, 1.0)["sentence"] == (
        "with 74 rows a gain of 0.33 would be found in 80 % of runs"
    )


def answers(won, lost, both):
    return np.r_[np.ones(won), np.zeros(lost), np.ones(both)], np.r_[
        np.zeros(won), np.ones(lost), np.ones(both)
    ]


def test_a_gate_that_cannot_tell_says_what_it_could_have_found():
    new, old = answers(5, 4, 65)
    found = decide([enough_rows(74, 50), more_right("better", new, old)])
    assert found["decision"] == CANNOT_TELL
    assert found["sentence"].endswith(
        "better not settled. With 74 rows a gain of 3 points would be found in 11 % of runs; "
        "80 % needs about 1,200 rows."
    )
    assert found["rules"][1]["numbers"]["power"]["rows_for_80"] == 1146
    guard = decide([not_fewer_right("regression", new, old, margin=0.02)])["sentence"]
    assert "With 74 rows an equal model would pass in" in guard
    noisy = np.random.default_rng(0).normal(size=(2, 74))
    reward = decide([superior("reward", *noisy)])["sentence"]
    assert "With 74 rows a gain of" in reward
    fluent = decide([not_inferior("fluency", *noisy, margin=0.1)])["sentence"]
    assert "With 74 rows an equal model would pass in" in fluent


def test_a_clear_decision_needs_no_such_sentence():
    new, old = answers(40, 4, 65)
    assert decide([more_right("better", new, old)])["sentence"] == "Promote: all 1 rules pass."
    assert "runs" not in decide([more_right("better", old, new)])["sentence"]


def test_a_comparison_of_models_says_what_it_could_have_found():
    def rows(arm, wrong):
        return [
            Prediction(
                id=str(at), arm=arm, seed=-1, input_text="x", gold="y", output_text="",
                correct=at not in wrong, prompt_tokens=1, output_tokens=1,
            )
            for at in range(74)
        ]  # fmt: skip

    told = [*rows("base", {1, 2, 3, 4, 5}), *rows("tuned", {6, 7, 8, 9}), *rows("other", {6, 7})]
    summary = models_summary(told, {"baseline": "base", "arms": {}}, {})
    assert summary["verdict"] == CANNOT_TELL
    power = summary["comparisons"]["tuned_vs_base"]["power"]
    # Two comparisons share the level, so each finds less than alone.
    assert power == paired_statement(74, 5, 4, level=0.025)
    assert power["power"] < paired_statement(74, 5, 4)["power"]
    assert "With 74 rows a gain of 3 points would be found in" in summary["verdict_sentence"]
