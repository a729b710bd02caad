"""YAML within bounds, in every place where a person's YAML is read."""

import time

import pytest

from pipestill.cli.settings import load
from pipestill.cloud.parameters import read_template
from pipestill.cloud.prices import read_prices
from pipestill.errors import UserError
from pipestill.generation.prompts import load_prompt
from pipestill.yaml_text import MOST_VALUES, read_yaml

LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
)
BAD = {
    "laughs": LAUGHS,
    "loop": "a: &a [*a]",
    "brackets": "a: " + "[" * 100_000,
    "levels": "\n".join(" " * n + f"k{n}:" for n in range(200)),
    "tag": "a: !!python/object/apply:os.system ['x']",
    "digits": "a: " + "9" * 100_000,
    "sexagesimal": "a: " + ":".join(["59"] * 5_000),
    "date": "a: 2026-13-45",
    "long": "a: " + "x" * 2_000_000,
    "surrogate": 'a: "\\ud800"',
}
READERS = {
    "configuration": lambda path: load(str(path), [], {"a": str}),
    "prompt": lambda path: load_prompt(str(path)),
    "prices": read_prices,
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_out_of_bounds_is_one_line_at_once(name, tmp_path):
    begun = time.monotonic()
    with pytest.raises(ValueError) as error:
        read_yaml(BAD[name])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    path = tmp_path / "bad.yaml"
    path.write_text(BAD[name], encoding="utf-8")
    for reader in READERS.values():
        with pytest.raises(UserError) as refused:
            reader(path)
        assert "\n" not in str(refused.value)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("name", ["laughs", "loop", "brackets", "long"])
def test_a_template_has_bounds_too(name, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(BAD[name] * (10 if name == "long" else 1), encoding="utf-8")
    with pytest.raises(UserError, match="SUBMIT_TEMPLATE"):
        read_template(path)


def test_a_long_set_is_shown_in_part():
    with pytest.raises(UserError, match="CONFIG_SET") as error:
        load(None, ["runs=" + "[" * 100_000], {"runs": list})
    assert len(str(error.value)) < 400


def test_aliases_that_stay_small_are_read():
    assert read_yaml("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}
    assert MOST_VALUES > 10_000
