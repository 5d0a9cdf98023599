"""Peers: rows and rounds dealt out, alone and among several."""

import os
import subprocess
import sys

import pytest

from fretsaw.stage.peers import ALONE, Peers, is_echo


@pytest.mark.parametrize("size", [1, 2, 4])
def test_rows_are_split_in_order(size: int) -> None:
    rows = [*range(8)]
    shares = [rows[Peers(rank, size).share(8, "batch_tokens 8")] for rank in range(size)]
    assert [row for share in shares for row in share] == rows


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_tokens 384: 3 rows .* 2 processes; make"):
        Peers(0, 2).share(3, "batch_tokens 384")


@pytest.mark.parametrize("num_items", [1, 4, 5])
def test_every_item_counts_once_and_all_have_as_many_rounds(num_items: int) -> None:
    items = [*range(num_items)]
    dealt = [[*Peers(rank, 3).rounds(items)] for rank in range(3)]
    assert len({len(own) for own in dealt}) == 1
    assert sorted(item for own in dealt for item, counts in own if counts) == items


def test_alone_everything_is_the_plain_answer() -> None:
    assert ALONE.gather(3) == [3]
    assert ALONE.total({"kl": 0.1}) == {"kl": 0.1}
    assert ALONE.any(True, False) == [True, False]
    assert ALONE.on_first(lambda: "x") == "x"


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_the_first_is_an_echo_on_the_others(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peers, "gather", lambda self, value: [(None, ValueError("no"))])
    with pytest.raises(ValueError, match="no") as error:
        Peers(rank, 2).on_first(lambda: None)
    assert is_echo(error.value) == (rank == 1)


@pytest.mark.parametrize("size", ["1", "2"])
@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("lambda: None", 0, ""),
        ("lambda: 75", 75, ""),
        ("lambda: sys.exit('no')", 1, "no"),
        ("lambda: [][0]", 1, "IndexError: list index out of range"),
    ],
)
def test_a_process_ends_as_its_body_says_alone_and_among_others(
    body: str, code: int, told: str, size: str
) -> None:
    program = "import sys; from fretsaw.stage.peers import end_process; print('done')"
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}; end_process({body})"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "WORLD_SIZE": size},
    )
    assert (ended.returncode, ended.stdout) == (code, "done\n")
    assert ended.stderr.rpartition("\n\n")[2].strip().endswith(told)
