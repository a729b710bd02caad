"""Commands of one template."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.evaluation.code_metrics import pass_at_k, same_template, template


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("find . -name '*.py' | wc -l", "find ARG -name ARG | wc -l"),
        ("top -b -d2 -s1 | sed -e '1,/USER/d'", "top -b -d2 -s1 | sed -e ARG"),
        ("ls -l --color=auto > out.txt", "ls -l --color > ARG"),
        ("sudo apt-get install x && echo done", "sudo apt-get ARG ARG && echo ARG"),
        ("find . | xargs grep -i foo", "find ARG | xargs grep -i ARG"),
        ("head -20 a.txt", "head ARG ARG"),
        ("LC_ALL=C sort 'a b'", "ARG sort ARG"),
        ("echo 'not closed", "echo ARG ARG"),
        ("", ""),
    ],
)
def test_template(command, wanted):
    assert " ".join(template(command)) == wanted


def test_same_template():
    assert same_template("find /tmp -name 'a*'", "find . -name '*.py'")
    assert not same_template("find . -iname 'a'", "find . -name 'a'")
    assert not same_template("", "")


@given(st.text(max_size=80))
def test_any_text_has_a_template(text):
    assert template(text) == template(text)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_pass_at_k_is_the_share_of_drawn_sets_with_a_pass(counts):
    samples, passed = counts
    for k in range(1, samples + 1):
        drawn = list(combinations(range(samples), k))
        share = sum(any(one < passed for one in some) for some in drawn) / len(drawn)
        assert pass_at_k(samples, passed, k) == pytest.approx(share)


def test_pass_at_k_of_many_samples():
    """The product form of the paper's figure 3, 1 - prod(1 - k / (n-c+1 .. n))."""
    left = 1.0
    for count in range(200 - 10 + 1, 201):
        left *= 1 - 100 / count
    assert pass_at_k(200, 10, 100) == pytest.approx(1 - left)
    assert pass_at_k(200, 0, 100) == 0
    assert pass_at_k(200, 101, 100) == 1


@pytest.mark.parametrize(("samples", "passed", "k"), [(0, 0, 1), (2, 3, 1), (2, 1, 3), (2, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(samples, passed, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(samples, passed, k)
