"""Commands of one template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.evaluation.code_metrics import same_template, template


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
