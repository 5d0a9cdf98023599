"""How page and card write a figure."""

from fretsaw.report.template import count, nats


def test_figures() -> None:
    assert [count(n) for n in (64, 583_680, 999_900, 8_030_000_000)] == [
        *("64", "584 k", "1 M", "8.03 B")
    ]
    assert [nats(x) for x in (0, 3e-6, 0.0146, 2.4879)] == ["0", "3.00e-06", "0.0146", "2.49"]
