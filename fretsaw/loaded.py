"""A checkpoint in the hand: the network and its tokenizer, ready to continue text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.engine import Engine, Request
from fretsaw.model.decoder import Decoder
from fretsaw.tokenizer import StreamDecoder, Tokenizer


@dataclass
class LoadedModel:
    """A decoder and the tokenizer that belongs to it."""

    decoder: Decoder
    tokenizer: Tokenizer

    @classmethod
    def from_checkpoint(cls, name_or_path: str | Path, *, device: str = "cpu") -> "LoadedModel":
        """Load a folder or a Hub id."""
        path = checkpoint.resolve(name_or_path)
        decoder = checkpoint.load(path, device=device)
        tokenizer = Tokenizer.from_folder(path)
        checkpoint.check_tokenizer(tokenizer, decoder.config)
        return cls(decoder, tokenizer)

    def generate(
        self, prompt: str, *, max_tokens: int = 100, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """Return the continuation of a prompt; temperature 0 is greedy."""
        pieces = self.stream(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
        return "".join(pieces)

    def stream(
        self, prompt: str, *, max_tokens: int = 100, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """Yield the continuation piece by piece, never half a character."""
        bos = self.tokenizer.bos_token_id
        token_ids = ((bos,) if bos is not None else ()) + tuple(self.tokenizer.encode(prompt))
        stop = self.decoder.config.eos_token_ids
        request = Request(token_ids, max_tokens, temperature, seed, stop)
        stream = StreamDecoder(self.tokenizer, after=token_ids)
        for event in Engine(self.decoder).generate([request]):
            if event.token_id in stop:
                break
            yield stream.feed([event.token_id])
        yield stream.flush()
