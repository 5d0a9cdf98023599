"""Where a subblock stands in a network. Standard library only."""

from dataclasses import dataclass

from fretsaw.model.kinds import Half

HALVES: tuple[Half, Half] = ("attention", "ffn")  # of a block, in order


@dataclass(frozen=True, order=True)  # a block's halves come in the order of the alphabet, too
class Place:
    """One of the 2 x layers subblocks, or the end behind them: the first half of no layer."""

    layer: int
    half: Half = "attention"

    @classmethod
    def numbered(cls, number: int) -> "Place":
        """Return the place that has so many subblocks before it."""
        layer, half = divmod(number, 2)
        return cls(layer, HALVES[half])

    @property
    def number(self) -> int:
        """How many subblocks are before it."""
        return 2 * self.layer + HALVES.index(self.half)

    def __add__(self, count: int) -> "Place":
        """Return the place so many subblocks further on."""
        return Place.numbered(self.number + count)
