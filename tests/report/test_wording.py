import math
from types import SimpleNamespace

import pytest

from sweeps.report import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.34, "+12.3%"), (-0.456, "−0.46%"), (410.4, "+410%"), (1312.0, "+1,312%"), (math.nan, "–"), (99.96, "+100.0%")],
)
def test_percent(value, text):
    assert wording.percent(value) == text


@pytest.mark.parametrize(("p", "text"), [(0.0512, "0.051"), (3.2e-8, "3e-8"), (5.42e-20, "5e-20"), (1.0, "1.000")])
def test_probability(p, text):
    assert wording.probability(p) == text


def test_sites():
    def trial(**changed):
        return SimpleNamespace(**{"level": "head", "layer_index": 3, "head": 5, "stream": "", "sites": "", **changed})

    assert wording.site(trial()) == "L3H5"
    assert wording.site(trial(stream="text")) == "L3H5 text"
    assert wording.site(trial(level="layer", head=-1)) == "L3"
    assert wording.site(trial(level="set", head=-1, sites="L0H1, L2H2")) == "L0H1, L2H2"
    assert wording.site(trial(level="block", head=-1, layer="down_blocks.0")) == "block down_blocks.0"


def test_moments_and_durations():
    assert wording.moment("2026-03-14T09:12:07+00:00") == "2026-03-14 09:12 UTC"
    assert wording.moment("yesterday") == "yesterday"
    assert [wording.duration(s) for s in (12.4, 573.2, 7500)] == ["12 s", "10 min", "2 h 5 min"]


def test_listing_and_slug():
    assert wording.listing(["a"]) == "a"
    assert wording.listing(["a", "b", "c"]) == "a, b and c"
    assert wording.slug("heatmap", 0, "../<b>A") == "heatmap-0-----b-a"
