import numpy as np
import pytest

from sweeps.report.theme import BIN_EDGES, BIN_NAMES, DARK, LIGHT, bin_name


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def test_both_themes_name_the_same_colours_and_light_ones_are_unique():
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("text", ["ink", "muted", "accent"])
@pytest.mark.parametrize("ground", ["paper", "page", "faint"])
def test_text_has_contrast_aa(theme, text, ground):
    assert contrast(theme[text], theme[ground]) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("mark", ["degraded", "improved", "data-1", "data-2", "data-3", "data-4"])
def test_marks_have_contrast(theme, mark):
    assert contrast(theme[mark], theme["paper"]) >= 3


@pytest.mark.parametrize(("theme", "sign"), [(LIGHT, -1), (DARK, 1)], ids=["light", "dark"])
def test_lightness_is_monotone_in_the_size_of_the_effect(theme, sign):
    levels = np.array([luminance(theme[name]) for name in BIN_NAMES])
    middle = BIN_NAMES.index("mid")
    assert (sign * np.diff(levels[middle:]) > 0).all()
    assert (sign * np.diff(levels[middle::-1]) > 0).all()


def test_bins():
    assert len(BIN_NAMES) == len(BIN_EDGES) + 1
    shown = {-80: "imp-6", -3: "imp-2", -0.5: "mid", 0: "mid", 1: "deg-1", 4.9: "deg-2", 5: "deg-3", 900: "deg-9"}
    assert {percent: bin_name(percent) for percent in shown} == shown
    assert bin_name(float("nan")) == "faint"
