import pytest

from fretsaw.eval.intervals import bootstrap, bootstrap_ratio, wilson


def test_wilson():
    # By hand for 8 of 10: (0.8 + 0.19208 -+ 1.96 sqrt(0.016 + 0.009604)) / 1.38416,
    # where z^2/2n = 0.19208, z^2/4n^2 = 0.009604 and the root is 0.160012.
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == pytest.approx(1.0)
    low, high = wilson(500, 1000)
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 1000) ** 0.5, rel=5e-3)
    with pytest.raises(AssertionError, match="no grades"):
        wilson(0, 0)


def test_bootstrap_is_the_normal_interval_where_there_is_much_data():
    values = [0.0, 1.0] * 500
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx((0.469, 0.531), abs=4e-3)
    assert bootstrap(values) == (low, high)  # a function of the values alone
    assert bootstrap([0.25] * 9) == (0.25, 0.25)


def test_ratio_pairs_the_problems():
    grades = [1.0, 0.0, 1.0, 1.0] * 50
    assert bootstrap_ratio(grades, grades) == (1.0, 1.0)
    low, high = bootstrap_ratio(grades, [1.0] * 200)
    assert low < 0.75 < high


def test_ratio_of_few_and_fractional_grades():
    assert bootstrap_ratio([0.25, 0.0, 0.0], [0.25, 0.0, 0.0]) == (1.0, 1.0)
    assert bootstrap_ratio([0.5, 0.0], [0.25, 0.0]) == (2.0, 2.0)  # draws of 0 / 0 have no ratio
