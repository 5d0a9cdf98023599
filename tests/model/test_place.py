"""Places count the subblocks of a network, in the order in which they are gone through."""

import pytest

from fretsaw.model.place import HALVES, Place


def test_places_are_numbered_in_their_order() -> None:
    places = [Place(layer, half) for layer in range(3) for half in HALVES]
    assert [place.number for place in places] == list(range(6))
    assert [Place.numbered(number) for number in range(6)] == places
    assert sorted(places, key=lambda place: -place.number)[::-1] == sorted(places) == places


@pytest.mark.parametrize(
    ("start", "count", "there"),
    [
        (Place(0), 1, Place(0, "ffn")),
        (Place(0, "ffn"), 1, Place(1)),
        (Place(1, "ffn"), 4, Place(3, "ffn")),
        (Place(2), 0, Place(2)),
    ],
)
def test_further_on(start: Place, count: int, there: Place) -> None:
    assert start + count == there
