import json

import numpy as np
import pytest
from page_data import column

from sweeps.report.columns import counts, floats, names, numbers, script_text


@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "i4", "u2", "u4"])
def test_numbers_come_back(kind):
    values = np.array([0, 1, 7, 300, 32_767])
    assert column(numbers(values, kind)).dtype == np.dtype(f"<{kind}")
    np.testing.assert_array_equal(column(numbers(values, kind)), values)


def test_what_is_no_number_is_nan():
    found = column(floats([1.5, None, "x", np.nan, np.inf]))
    np.testing.assert_array_equal(found, [1.5, np.nan, np.nan, np.nan, np.inf])


def test_counts_stay_in_range():
    assert column(counts([3, np.nan, -2, 1e300, np.inf])).tolist() == [3, 0, 0, 2**32 - 1, 2**32 - 1]


def test_names_are_kept_once_and_in_the_known_order():
    packed = names(["b", None, "b", "a", float("nan")], known=("a", "b", "c"))
    assert packed["names"] == ["a", "b", "c", ""]
    assert column(packed) == ["b", "", "b", "a", ""]


@pytest.mark.parametrize(("different", "kind"), [(256, "u1"), (257, "u2"), (65_536, "u2"), (65_537, "u4")])
def test_codes_are_as_small_as_their_number_allows(different, kind):
    texts = [str(i) for i in range(different)]
    packed = names(texts)
    assert packed["codes"]["kind"] == kind
    assert column(packed) == texts


def test_no_text_ends_the_script_element():
    hostile = ["</script><script>", "<!--", "]]>", "\u2028", "\x00", "é"]
    text = str(script_text({"names": hostile}))
    assert "<" not in text
    assert text.isascii()
    assert json.loads(text)["names"] == hostile


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="Out of range"):
        script_text({"value": float("nan")})
