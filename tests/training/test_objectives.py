"""What each objective teaches."""

from hypothesis import given
from hypothesis import strategies as st

from pipestill.training.objectives import OBJECTIVES, Target, derangement
from tests.training.tiny import make_rows


@given(st.integers(2, 200), st.integers(0, 10**9))
def test_a_derangement_moves_everything_and_loses_nothing(count, seed):
    found = derangement(count, seed)
    assert sorted(found) == list(range(count))
    assert all(i != j for i, j in enumerate(found))
    assert found == derangement(count, seed)


def test_dss_teaches_both_tasks_where_there_is_a_rationale():
    rows = make_rows(2)
    assert OBJECTIVES["dss"](rows, 0) == [
        [Target("predict", rows[0].output_text), Target("explain", rationale=rows[0].rationale)],
        [Target("predict", rows[1].output_text)],
    ]


@given(st.integers(0, 10**6))
def test_shuffled_gives_every_row_another_row_s_rationale(seed):
    rows = make_rows(21, every=4)
    found = OBJECTIVES["shuffled"](rows, seed)
    given = [targets[1].rationale for targets in found if len(targets) > 1]
    own = [row.rationale for row in rows if row.rationale]
    assert sorted(given) == sorted(own)
    for row, targets in zip(rows, found, strict=True):
        assert targets[0] == Target("predict", row.output_text)
        assert (len(targets) > 1) == bool(row.rationale)
        if row.rationale:
            assert targets[1].rationale != row.rationale  # texts are unique in these rows


def test_shuffled_leaves_a_single_rationale_out():
    assert [len(t) for t in OBJECTIVES["shuffled"](make_rows(2), 0)] == [1, 1]


def test_label_only_never_sees_a_rationale():
    rows = make_rows(4)
    assert OBJECTIVES["label_only"](rows, 0) == [[Target("predict", r.output_text)] for r in rows]


def test_every_objective_says_what_it_does():
    assert all(objective.__doc__ for objective in OBJECTIVES.values())
