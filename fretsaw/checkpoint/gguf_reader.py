"""GGUF read: the architectures `llama` and `deci`, by whichever program they were written.

Weights come in any precision that the `gguf` package can expand. Rotary scaling is in no key: the
file holds one factor a frequency, and the settings that give these factors are found again.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import quants
from jaxtyping import Float
from torch import Tensor

from fretsaw.checkpoint.gguf import ROPE_FACTORS, ROTATED, permuted, tensor_name
from fretsaw.checkpoint.vocabulary import NORMAL, Vocabulary
from fretsaw.model.config import BlockConfig, ModelConfig, RopeScaling
from fretsaw.model.decoder import Decoder
from fretsaw.model.rope import rope_inv_freq
from fretsaw.model.without_storage import without_storage

ARCHITECTURES = ("llama", "deci")
_PLAIN = ("F32", "F16", "BF16")
# key of the architecture -> values under which the network is ours
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "expert_count": (None, 0),
    "rope.scaling.type": (None, "none"),
    "rope.scale_linear": (None, 1.0),
    "attention.causal": (None, True),
    "attention.sliding_window": (None, 0),
    "attention.scale": (None, 0.0),
    "attention.clamp_kqv": (None, 0.0),
    "embedding_scale": (None, 1.0, 0.0),
    "residual_scale": (None, 1.0, 0.0),
    "logit_scale": (None, 1.0, 0.0),
}
_PUBLISHED_SCALINGS = tuple(
    RopeScaling(
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    for factor in (8.0, 16.0, 32.0)
)


class GgufFile:
    """An open file: its architecture by our names, its tensors expanded as they are asked for."""

    def __init__(self, path: Path):
        """Read all but the weights. Raises ValueError for what is no whole file of ours to read."""
        self.path = path
        self._reader = _open(path)
        self._stored = {tensor.name: tensor for tensor in self._reader.tensors}
        self.arch = self.field("general.architecture")
        if self.arch not in ARCHITECTURES:
            raise ValueError(
                f"{path}: its architecture is {self.arch!r}, but only "
                f"{' and '.join(ARCHITECTURES)} are read; choose a model of the Llama family"
            )
        if (self.field("split.count") or 0) > 1:
            raise ValueError(
                f"{path}: one of {self.field('split.count')} parts; join them with "
                "`llama-gguf-split --merge` first"
            )
        self._refuse_other_networks()
        factors = self._stored.pop(ROPE_FACTORS, None)
        self.rope_factors = None if factors is None else torch.from_numpy(np.array(factors.data))

    def field(self, key: str) -> Any:
        """Return the value of a key, None where it is absent."""
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    @property
    def precisions(self) -> set[str]:
        """The precisions of the matrices, such as {"Q4_1", "Q8_0"}."""
        matrices = (tensor for tensor in self._stored.values() if len(tensor.shape) > 1)
        return {tensor.tensor_type.name for tensor in matrices}

    def config(self) -> ModelConfig:
        """Return the architecture; raise ValueError where it is incomplete or no ours."""
        heads, key_value_heads = (
            self._per_layer(f"attention.{key}") for key in ("head_count", "head_count_kv")
        )
        blocks = tuple(
            BlockConfig("gqa" if kv else "linear" if heads else "none", kv, "swiglu", width)
            for heads, kv, width in zip(
                heads, key_value_heads, self._per_layer("feed_forward_length"), strict=True
            )
        )
        hidden_size, num_heads = self._required("embedding_length"), max(heads)
        head_dim = self._own("attention.key_length") or hidden_size // num_heads
        rotated = self._own("rope.dimension_count") or head_dim
        if rotated != head_dim or (self._own("attention.value_length") or head_dim) != head_dim:
            raise ValueError(
                f"{self.path}: heads of {head_dim} channels of which {rotated} are rotated, which "
                "this network does not implement; choose a model that rotates whole heads"
            )
        ends = (self._token(f"{end}_token_id") for end in ("eos", "eot", "eom"))
        config = ModelConfig(
            vocab_size=self._vocab_size(),
            hidden_size=hidden_size,
            num_attention_heads=num_heads,
            head_dim=head_dim,
            blocks=blocks,
            rms_norm_eps=_shortest(self._required("attention.layer_norm_rms_epsilon")),
            max_position_embeddings=self._required("context_length"),
            rope_theta=self._own("rope.freq_base") or 10000.0,
            tie_word_embeddings="output.weight" not in self._stored,
            bos_token_id=self._token("bos_token_id"),
            eos_token_ids=tuple(dict.fromkeys(id for id in ends if id is not None)),
            pad_token_id=self._token("padding_token_id"),
        )
        if self.rope_factors is None:
            return config
        return replace(config, rope_scaling=rope_scaling_of(config, self.rope_factors))

    def tensors(self, config: ModelConfig) -> "GgufTensors":
        """Return the weights that a config calls for, which must be there, and none besides."""
        with without_storage():
            shapes = {n: tuple(w.shape) for n, w in Decoder(config).state_dict().items()}
        names = {tensor_name(name): name for name in shapes}
        missing = [name for name in names if name not in self._stored]
        if missing:
            raise ValueError(f"{self.path}: no tensor {missing[0]}; the file is not whole")
        others = [name for name in self._stored if name not in names]
        if others:
            raise ValueError(
                f"{self.path}: tensors that its layers do not call for ({', '.join(others[:4])}); "
                "choose a model without biases and experts"
            )
        return GgufTensors(self.path, shapes, self._stored, config.head_dim)

    def vocabulary(self) -> Vocabulary:
        """Return the tokenizer that the file carries; raise ValueError for a kind not known."""
        kind = self._token("model")
        if kind not in ("gpt2", "llama"):
            raise ValueError(
                f"{self.path}: its tokenizer is of kind {kind!r}, but only gpt2 and llama are "
                "read; take the model's own folder with its tokenizer.json"
            )
        pre = self._token("pre") or "default"
        begins = kind == "llama" or pre == "llama-bpe"  # what llama.cpp takes where no key says it
        tokens = self._token("tokens") or ()
        types = self._token("token_type") or [NORMAL] * len(tokens)
        scores = self._token("scores") or ()
        if not tokens or len(types) != len(tokens) or (kind == "llama" and not scores):
            raise ValueError(f"{self.path}: its tokenizer is not whole; download it again")
        ends = (self._token(f"{end}_token_id") for end in ("eos", "eot", "eom"))
        names = self.field("tokenizer.chat_templates") or ()
        templates = {"default": self.field("tokenizer.chat_template")}
        templates |= {name: self.field(f"tokenizer.chat_template.{name}") for name in names}
        adds_bos, adds_space = self._token("add_bos_token"), self._token("add_space_prefix")
        return Vocabulary(
            model=kind,
            pre=pre,
            tokens=tuple(tokens),
            types=tuple(types),
            merges=tuple(self._token("merges") or ()),
            scores=tuple(scores),
            adds_space=kind == "llama" if adds_space is None else adds_space,
            adds_bos=begins if adds_bos is None else adds_bos,
            adds_eos=bool(self._token("add_eos_token")),
            bos_token_id=self._token("bos_token_id"),
            eos_token_ids=tuple(dict.fromkeys(id for id in ends if id is not None)),
            unk_token_id=self._token("unknown_token_id"),
            pad_token_id=self._token("padding_token_id"),
            chat_templates={name: text for name, text in templates.items() if text is not None},
        )

    def _token(self, key: str) -> Any:
        return self.field(f"tokenizer.ggml.{key}")

    def _refuse_other_networks(self) -> None:
        for key, neutral in _NEUTRAL_VALUES.items():
            value = self._own(key)
            if value not in neutral:
                raise ValueError(
                    f"{self.path}: {self.arch}.{key} is {value!r}, which this network does not "
                    "implement; choose another model"
                )

    def _own(self, key: str) -> Any:
        return self.field(f"{self.arch}.{key}")

    def _required(self, key: str) -> Any:
        value = self._own(key)
        if value is None:
            raise ValueError(f"{self.path}: no {self.arch}.{key}; download it again")
        return value

    def _per_layer(self, key: str) -> list[int]:
        value = self._own(key)
        if value is None and key == "attention.head_count_kv":
            return self._per_layer("attention.head_count")
        value = self._required(key)
        return value if isinstance(value, list) else [value] * self._required("block_count")

    def _vocab_size(self) -> int:
        embedding = self._stored.get("token_embd.weight")
        if embedding is None:
            raise ValueError(f"{self.path}: no tensor token_embd.weight; the file is not whole")
        return int(embedding.shape[1])


class GgufTensors(Mapping[str, Tensor]):
    """The weights by our names, each expanded to float32 when it is looked up."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        stored: Mapping[str, gguf.ReaderTensor],
        head_dim: int,
    ):
        self._path, self.shapes, self._stored, self._head_dim = path, shapes, stored, head_dim

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, name: str) -> Tensor:
        shape, written = self.shapes[name], tensor_name(name)
        tensor = self._stored[written]
        if tuple(reversed(tensor.shape.tolist())) != shape:
            raise ValueError(
                f"{self._path}: {written} is {tuple(reversed(tensor.shape.tolist()))}, but its "
                f"layers call for {shape}; download it again"
            )
        try:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise ValueError(
                f"{self._path}: {written} is stored as {tensor.tensor_type.name}, which can't be "
                "expanded here; take the file in F16, Q8_0 or a K-quant"
            ) from None
        weight = torch.from_numpy(np.array(values, np.float32)).view(shape)
        if not torch.isfinite(weight).all():
            raise ValueError(f"{self._path}: {written} holds NaN or infinity; download it again")
        return permuted(weight, self._head_dim, back=True) if written.endswith(ROTATED) else weight


def read(path: Path) -> Decoder:
    """Open a file as a decoder: float32 weights, rotated by the file's own factors."""
    file = GgufFile(path)
    config = file.config()
    with without_storage():
        decoder = Decoder(config)
    if file.rope_factors is not None:  # to the bit, which the settings found again may not be
        decoder._inv_freq = rope_inv_freq(replace(config, rope_scaling=None)) / file.rope_factors
    decoder.load_state_dict(dict(file.tensors(config)), assign=True)
    return decoder


def rope_scaling_of(
    config: ModelConfig, factors: Float[Tensor, " half_head_dim"]
) -> RopeScaling | None:
    """Return Llama 3's settings under which every frequency is divided by its factor.

    Only the ratios of the three lengths matter, so published settings are taken where they fit,
    else those with `low_freq_factor` 1. Raises ValueError where none give these factors.
    """
    unscaled = rope_inv_freq(replace(config, rope_scaling=None))
    factors = factors.flatten().float()

    def fits(scaling: RopeScaling) -> bool:
        found = unscaled / rope_inv_freq(replace(config, rope_scaling=scaling))
        return torch.allclose(found, factors, rtol=1e-4)

    if factors.shape == unscaled.shape and factors.isfinite().all():
        if torch.allclose(factors, torch.ones_like(factors), rtol=1e-6):
            return None
        for scaling in (*_PUBLISHED_SCALINGS, *_solved(unscaled, factors)):
            if fits(scaling):
                return scaling
    raise ValueError(
        f"{ROPE_FACTORS}: the factors {factors[:3].tolist()} ... {factors[-1:].tolist()} are not "
        "those of Llama 3's rotary scaling, the only one that is implemented; choose another model"
    )


def _solved(
    unscaled: Float[Tensor, " half_head_dim"], factors: Float[Tensor, " half_head_dim"]
) -> Iterator[RopeScaling]:
    """Yield settings that may give these factors.

    With `low_freq_factor` 1, the share of a frequency that is kept is
    `(original / wavelength - 1) / (high - 1)`, cut off at 0 and 1.
    """
    factor = float(factors.max())
    waves = unscaled.double() / (2 * math.pi)  # 1 / wavelength
    shares = (1 / factors.double() - 1 / factor) / (1 - 1 / factor)
    for high, original in _lengths(waves, shares):
        for scale in (1, 256):  # the length is a whole number; where it was none, a multiple is
            yield RopeScaling(
                factor=round(factor, 6),
                low_freq_factor=float(scale),
                high_freq_factor=round(scale * high, 6),
                original_max_position_embeddings=max(1, round(scale * original)),
            )


def _lengths(
    waves: Float[Tensor, " half_head_dim"], shares: Float[Tensor, " half_head_dim"]
) -> Iterator[tuple[float, float]]:
    """Yield (high_freq_factor, original length): two blended frequencies tell both.

    With one, or none, many fit; then the published 4 comes first.
    """
    is_between = (shares > 1e-4) & (shares < 1 - 1e-4)
    between, stretched, kept = waves[is_between], waves[shares <= 1e-4], waves[shares >= 1 - 1e-4]
    longest = 1 / float(stretched.max()) if len(stretched) else 4 / float(waves.min())
    shortest = 1 / float(kept.min()) if len(kept) else longest / 16
    if len(between) > 1:
        slope = float((shares[is_between][0] - shares[is_between][-1]) / (between[0] - between[-1]))
        high = 1 + 1 / max(float(slope * between[0] - shares[is_between][0]), 1e-9)
        yield high, slope * (high - 1)
    elif len(between) == 1:
        share, wave = float(shares[is_between]), float(between)
        yield 4.0, (3 * share + 1) / wave
        original = (longest / wave) ** 0.5
        yield 1 + (original * wave - 1) / share, original
    else:
        yield 4.0, 2 * (longest * shortest) ** 0.5
        gap = (longest / shortest) ** 0.25
        yield gap**2, longest / gap


class _Reader(gguf.GGUFReader):
    """Reads through a plain view of the mapped file: slices of a `memmap` take far longer to make.

    A vocabulary of 128,256 tokens is 1.2 million slices.
    """

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._data = np.asarray(mapped)


def _open(path: Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a .gguf file")
    try:
        return _Reader(path)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"{path}: not a whole GGUF file that can be read ({error}); download it again"
        ) from error


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same number in float32, as configs spell it."""
    return float(np.format_float_positional(np.float32(value), unique=True))
