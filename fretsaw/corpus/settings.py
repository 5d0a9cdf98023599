"""Settings of the corpus: which text, how much of it, and what is held out."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """Turn text into token ids, with a held-out part.

    The tokenizer is that of the checkpoint given as `--parent`; without one it is trained here.
    """

    source: Literal["files", "hub", "self", "world"] = "files"
    """files given as inputs, a Hub dataset, text sampled from the parent, or generated problems."""
    dataset: str = ""
    """With source hub: the dataset's id, streamed for just the tokens needed."""
    weights: tuple[float, ...] = ()
    """Shares of the files in the tokens, in the order of --data; empty: all alike. `a.txt:0.3` in
    --data sets them."""
    shuffle_documents: int = 2000
    """Documents of a stream held in memory to be shuffled as they are read."""
    max_tokens: int = 4_000_000
    """Training tokens taken at most."""
    heldout_tokens: int = 65_536
    """Tokens of the documents that are held out, about a tenth of each source at most."""
    seq_len: int = 256
    """Tokens of one row; text whose held-out part has not even one row is refused."""
    vocab_size: int = 512
    """Without a parent: size of the tokenizer that is trained."""
    tokenizer_documents: int = 4000
    """Without a parent: documents the tokenizer is trained on."""
    sample_length: int = 256
    """With source self: tokens of one sampled text at most."""

    def __post_init__(self) -> None:
        if any(not 0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights {self.weights}: give numbers above 0")
        if self.shuffle_documents < 1:
            raise ValueError(f"shuffle_documents {self.shuffle_documents}: give at least 1")
        if (self.source == "hub") != bool(self.dataset):
            raise ValueError(
                f"source {self.source!r} with dataset {self.dataset!r}; a Hub dataset needs both "
                "source hub and its id"
            )
        if self.max_tokens < 2 or self.heldout_tokens < 2:
            raise ValueError(
                f"max_tokens {self.max_tokens}, heldout_tokens {self.heldout_tokens}; "
                "both parts need at least 2 tokens"
            )
