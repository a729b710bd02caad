"""The price table: every entry sane, every machine priced, and replaceable by a file."""

import datetime

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipestill.cloud.prices import (
    FEE,
    PIPELINE_RUN,
    PLAIN_TASK,
    PRICES_VARIABLE,
    SHIPPED,
    Range,
    find_price,
    load_prices,
    machine_hour,
    read_prices,
)
from pipestill.errors import UserError
from pipestill.pipelines.hardware import PROFILES

ENTRY = {
    "name": "a2-ultragpu-8g",
    "kind": "on_demand",
    "region": "us-central1",
    "unit": "hour",
    "low": 30,
    "likely": 31.5,
    "high": 32,
    "date": datetime.date(2026, 11, 1),
    "source": "our contract",
}


def written(path, *entries):
    path.write_text(yaml.safe_dump(list(entries)), encoding="utf-8")
    return path


@pytest.mark.parametrize("price", read_prices(SHIPPED), ids=lambda price: "/".join(price.key))
def test_every_entry_is_dated_sourced_and_in_order(price):
    assert 0 <= price.range.low <= price.range.likely <= price.range.high
    assert price.range.likely > 0
    assert datetime.date(2024, 1, 1) <= price.date <= datetime.date(2026, 12, 31)
    assert len(price.source) > 20
    if price.kind == "spot":
        other = find_price(load_prices(""), price.name, "on_demand", price.region)
        assert other is not None
        assert price.range.likely < other.range.likely
        assert price.range.high <= other.range.high


def test_no_entry_stands_twice():
    prices = read_prices(SHIPPED)
    assert len({price.key for price in prices}) == len(prices)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_every_profile_is_priced_on_demand_in_its_region(profile):
    found = machine_hour(
        load_prices(""),
        profile.machine_type or PLAIN_TASK,
        profile.accelerator_type,
        profile.accelerator_count,
        profile.location,
        "on_demand",
    )
    assert found is not None
    assert found[1].region in ("", profile.location)


def test_the_magnitudes_are_those_of_the_public_tables():
    prices = load_prices("")
    for region in ("us-central1", "europe-west4"):
        eight, _ = machine_hour(
            prices, "a2-ultragpu-8g", "NVIDIA_A100_80GB", 8, region, "on_demand"
        )
        assert 20 < eight.low <= eight.high < 120
    slice_, _ = machine_hour(prices, "cloud-tpu", "TPU_V3", 64, "europe-west4", "on_demand")
    assert slice_.likely == pytest.approx(64.0)
    assert machine_hour(prices, "cloud-tpu", "TPU_V3", 64, "europe-west4", "spot") is None
    assert 0.05 < find_price(prices, FEE, "fee").range.likely < 0.3
    assert find_price(prices, PIPELINE_RUN, "fee").range.likely == pytest.approx(0.03)


def test_larger_machines_of_a_family_cost_more_in_proportion():
    prices = load_prices("")
    for count in (1, 2, 4):
        part = find_price(prices, f"a2-ultragpu-{count}g", "on_demand").range
        whole = find_price(prices, "a2-ultragpu-8g", "on_demand", "us-central1").range
        assert part.likely * 8 / count == pytest.approx(whole.likely, rel=0.01)


def test_a_file_replaces_single_entries(tmp_path, monkeypatch):
    own = written(tmp_path / "own.yaml", ENTRY, {**ENTRY, "name": "x9-mega", "region": ""})
    prices = load_prices(own)
    assert find_price(prices, "a2-ultragpu-8g", "on_demand", "us-central1").range.likely == 31.5
    assert find_price(prices, "a2-ultragpu-8g", "on_demand", "europe-west4").range.likely == 44.65
    assert find_price(prices, "x9-mega", "on_demand", "anywhere").source == "our contract"
    monkeypatch.setenv(PRICES_VARIABLE, str(own))
    assert load_prices() == prices
    assert load_prices("") != prices


def test_another_region_stands_in_where_none_is_listed():
    price = find_price(load_prices(""), "a2-ultragpu-8g", "on_demand", "asia-southeast1")
    assert price.region == "us-central1"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"low": 40}, "low <= likely <= high"),
        ({"high": -1}, "high"),
        ({"likely": float("nan")}, "likely"),
        ({"likely": "31"}, "likely"),
        ({"high": True}, "high"),
        ({"date": "soon"}, "date"),
        ({"source": " "}, "source"),
        ({"kind": "free"}, "on_demand, spot, fee"),
        ({"unit": "day"}, "core-hour"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_entry_is_named(tmp_path, change, named):
    own = written(tmp_path / "own.yaml", ENTRY, {**ENTRY, **change})
    with pytest.raises(UserError) as caught:
        load_prices(own)
    assert caught.value.code == "PRICES_INVALID"
    assert "entry 2" in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "", "just text", "- 3"])
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="PRICES_"):
        load_prices(tmp_path / "own.yaml")
    with pytest.raises(UserError, match="PRICES_UNREADABLE"):
        load_prices(tmp_path / "none.yaml")


positive = st.floats(0.01, 1e6)


@given(st.lists(positive, min_size=3, max_size=3), st.lists(positive, min_size=3, max_size=3))
def test_ranges_stay_in_order(first, second):
    one, two = Range(*sorted(first)), Range(*sorted(second))
    for found in (one + two, one * two, one * 3.0, one.under(5.0), one.at_least(two)):
        assert found.low <= found.likely <= found.high
