"""A checkpoint in the hand: the network and its tokenizer, ready to continue text or to chat."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fretsaw.chat import Message, Mode, Toggle, prompt_ids, toggle_of
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.engine import Engine
from fretsaw.engine.sequence import Request
from fretsaw.model.decoder import Decoder
from fretsaw.tokenizer import StreamDecoder, Tokenizer


@dataclass
class LoadedModel:
    """A decoder, the tokenizer that belongs to it, and how it is told to reason or not."""

    decoder: Decoder
    tokenizer: Tokenizer
    toggle: Toggle = "v1"

    @classmethod
    def from_checkpoint(cls, name_or_path: str | Path, *, device: str = "cpu") -> "LoadedModel":
        """Load a folder or a Hub id."""
        path = checkpoint.resolve(name_or_path)
        decoder = checkpoint.load(path, device=device)
        tokenizer = Tokenizer.from_folder(path)
        checkpoint.check_tokenizer(tokenizer, decoder.config)
        return cls(decoder, tokenizer, toggle_of(path))

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
        return self._stream(self._request(token_ids, max_tokens, temperature, seed), token_ids)

    def chat(
        self,
        messages: Sequence[Message],
        mode: Mode = "on",
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the answer to a conversation piece by piece, its reasoning with its tags included.

        Where prompt and `max_tokens` exceed the model's context, the answer ends there. Raises
        ValueError where the conversation alone fills it, and for a model that has no chat format.
        """
        token_ids = prompt_ids(self.tokenizer, messages, mode, toggle=self.toggle)
        room = self.decoder.config.max_position_embeddings - len(token_ids)
        if room < 1:
            raise ValueError(
                f"chat: the conversation has {len(token_ids)} tokens, but the model's context is "
                f"{self.decoder.config.max_position_embeddings}; begin a new one"
            )
        return self._stream(self._request(token_ids, min(max_tokens, room), temperature, seed))

    def _request(
        self, token_ids: tuple[int, ...], max_tokens: int, temperature: float, seed: int
    ) -> Request:
        stop = self.decoder.config.eos_token_ids
        return Request(token_ids, max_tokens, temperature, seed, stop)

    def _stream(self, request: Request, after: Sequence[int] = ()) -> Iterator[str]:
        decoded = StreamDecoder(self.tokenizer, after=after)
        for event in Engine(self.decoder).generate([request]):
            if event.token_id is None or event.token_id in request.stop_token_ids:
                break
            yield decoded.feed([event.token_id])
        yield decoded.flush()
