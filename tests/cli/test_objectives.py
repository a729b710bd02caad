"""``objective``, ``sizes`` and ``seeds`` of pipeline `distill` as its runs."""

import pytest

from pipestill.cli.settings import load
from pipestill.errors import UserError

ALLOWED = {"runs": list, "objective": str, "on_policy_fraction": float, "tau": float}


def runs(*assignments):
    return load(None, assignments, ALLOWED)


def test_one_objective_comes_with_its_control():
    found = runs("objective=feature/cka", "seeds=[0, 1]")
    assert found["runs"] == [
        "feature/cka:0",
        "feature/cka:1",
        "teacher_labels:0",
        "teacher_labels:1",
    ]
    assert found["objective"] == "feature/cka"


def test_all_families_come_with_both_controls_at_every_size():
    found = runs("objective=all", "seeds=[3]", "sizes=[2, 5+1]")
    assert len(found["runs"]) == 2 * (5 + 2)
    assert {"relation@2:3", "gold@5+1:3", "teacher_labels@2:3"} <= set(found["runs"])
    assert found["objective"] == "response@2"


def test_controls_and_lists_can_be_chosen(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("objective: [self, response]\ncontrols: [gold]\nseeds: [0]\n")
    found = load(str(file), [], ALLOWED)
    assert found["runs"] == ["self:0", "response:0", "gold:0"]
    assert found["objective"] == "self"


def test_given_runs_are_left_alone():
    found = runs("objective=response", "runs=[self/ema:1]")
    assert found == {"objective": "response", "runs": ["self/ema:1"]}
    assert runs("tau=2") == {"tau": 2.0}


@pytest.mark.parametrize("bad", ["sizes=2", "seeds=0", "objective=[1]"])
def test_a_wrong_value_is_named(bad):
    with pytest.raises(UserError, match="CONFIG_TYPE"):
        runs(bad) if "[1]" not in bad else runs("objective=response", "sizes=2")
