"""Alarms over synthetic logs: each kind rings where it should, and a good run rings none."""

from pipestill.rlhf.alarms import WINDOW, alarms


def good(steps: int = 30) -> list[dict]:
    log = []
    for step in range(steps + 1):
        entry = {"step": step}
        if step:
            entry |= {"reward": step / 10, "kl": 3.0 + step / 20, "eos_share": 0.9,
                      "value_loss": 1.0 / step}  # fmt: skip
        if step % 10 == 0:
            entry |= {"val_reward": step / 10, "val_reward_se": 0.1, "val_kl": 3.0,
                      "val_reward_length_controlled": step / 12, "val_distinct_1": 0.4,
                      "val_distinct_2": 0.8, "val_judge": step / 20}  # fmt: skip
        log.append(entry)
    return log


def rung(log, bound=20.0):
    found = alarms(log, bound)
    assert [a["step"] for a in found] == sorted(a["step"] for a in found)
    return [(a["code"], a["step"]) for a in found]


def test_a_good_run_rings_none():
    assert rung(good()) == []
    assert rung([]) == []
    assert rung([{"step": 0}]) == []


def test_reward_by_length_and_against_the_judge():
    log = good()
    log[20]["val_reward_length_controlled"] = -0.1
    log[30]["val_judge"] = -0.1
    assert rung(log) == [("LENGTH_EXPLOITED", 20), ("JUDGE_DISAGREES", 30)]
    log[20]["val_reward"] = 0.15  # within its error: no rise to explain
    assert rung(log) == [("JUDGE_DISAGREES", 30)]


def test_kl_past_its_bound_and_on_its_way():
    log = good()
    log[17]["kl"] = 21.0
    assert rung(log) == [("KL_PAST_BOUND", 17)]
    log = good()
    for entry in log[1:]:
        entry["kl"] = 0.6 * entry["step"]
    assert ("KL_RUNAWAY", 24) in rung(log)
    for entry in log[1:]:
        entry["kl"] = 12.0  # high, but steady
    assert rung(log) == []


def test_answers_that_become_alike():
    log = good()
    log[20]["val_distinct_2"] = 0.39
    assert rung(log) == [("ANSWERS_ALIKE", 20)]
    log = good()
    log[30]["val_distinct_1"] = 0.1
    assert rung(log) == [("ANSWERS_ALIKE", 30)]


def test_answers_that_never_end():
    log = good()
    for entry in log[5 : 5 + WINDOW - 1]:
        entry["eos_share"] = 0.0
    assert rung(log) == []
    log[5 + WINDOW - 1]["eos_share"] = 0.0
    assert rung(log) == [("EOS_NEVER_SAMPLED", 5 + WINDOW - 1)]


def test_a_value_loss_that_explodes():
    log = good()
    log[15]["value_loss"] = 9.0
    assert rung(log) == [("VALUE_LOSS_EXPLODED", 15)]
