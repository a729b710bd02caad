"""What a claims run refuses before its first step."""

import pytest

from pipestill.claims.settings import check_settings
from pipestill.cli.main import main
from pipestill.errors import UserError


def test_the_defaults_and_the_example_are_fine():
    check_settings("claims", {})
    check_settings(
        "claims", {"arms": ["dss"], "shares": "0.5,1", "kl_coeffs": "0.2,0.4", "seeds": "3"}
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"shares": "0,2"}, "CONFIG_VALUE.*shares"),
        ({"seeds": "1000"}, "CONFIG_VALUE.*search_seed"),
        ({"arms": ["dss", "magic"]}, "CONFIG_VALUE.*arms.*magic.*finetune"),
        ({"kl_coeffs": "much"}, "CONFIG_VALUE.*kl_coeffs"),
        ({"eval_shots": "few"}, "SHOTS_UNREADABLE"),
        ({"serving_machine": "abacus"}, "MACHINE_UNPRICED.*abacus"),
    ],
)
def test_a_wrong_setting_is_refused_at_once(changed, words):
    with pytest.raises(UserError, match=words):
        check_settings("claims", changed)


def test_before_the_first_step(tmp_path, capsys):
    out = tmp_path / "run"
    given = ["--set", "study=claims", "--set", "dataset_uri=pocket:eval", "--set", "shares=0,2"]
    assert main(["run", "evaluate", *given, "--out", str(out)]) == 2
    assert "CONFIG_VALUE" in capsys.readouterr().err
    assert not out.exists()
