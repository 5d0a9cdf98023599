"""The learning-rate schedule at its corners."""

from fretsaw.training.schedule import warmup_cosine


def rate(step: int) -> float:
    return warmup_cosine(step, num_steps=100, num_warmup=10, min_ratio=0.1)


def test_it_warms_up_to_the_peak_and_ends_at_the_minimum() -> None:
    assert rate(0) == 0.1
    assert rate(9) == 1.0
    assert abs(rate(54) - 0.55) < 1e-12  # halfway down the cosine: (1 + 0.1) / 2
    assert abs(rate(99) - 0.1) < 1e-12


def test_it_rises_then_falls() -> None:
    rates = [rate(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
