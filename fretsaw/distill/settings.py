"""Settings of training: the loop, distillation from a parent, and pretraining from nothing."""

from dataclasses import dataclass, field

from fretsaw.training.settings import UpdateSettings


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise ValueError(f"{name}: {value!r}; {rule}")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training loop."""

    tokens: int = 2_000_000
    """Tokens to train on; the number of steps follows from it."""
    batch_tokens: int = 4096
    """Tokens of one optimizer step."""
    micro_batch_tokens: int = 4096
    """Tokens of one forward and backward of a process; gradients accumulate to `batch_tokens`."""
    seq_len: int = 256
    """Tokens of one row."""
    update: UpdateSettings = field(default_factory=UpdateSettings)
    """Optimizer and rates."""
    heldout_tokens: int = 16_384
    """Tokens of every held-out measurement."""
    heldout_every: int = 0
    """Steps between held-out measurements; 0 is a tenth of all."""
    save_every_s: float = 30.0
    """Seconds between saved states; it never changes the result."""
    compile: bool = False
    """Compile the blocks with torch.compile (needs a C++ compiler on CPU)."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass, which runs the block again."""

    def __post_init__(self) -> None:
        _require(self.seq_len >= 2, "seq_len", self.seq_len, "a row needs at least 2 tokens")
        rule = f"must be a multiple of seq_len {self.seq_len}"
        micro, batch = self.micro_batch_tokens, self.batch_tokens
        _require(
            micro >= self.seq_len and micro % self.seq_len == 0, "micro_batch_tokens", micro, rule
        )
        _require(
            batch >= micro and batch % micro == 0,
            "batch_tokens",
            batch,
            f"must be a multiple of micro_batch_tokens {micro}",
        )
        _require(
            self.tokens >= batch, "tokens", self.tokens, f"must be at least batch_tokens {batch}"
        )
        _require(self.heldout_every >= 0, "heldout_every", self.heldout_every, "is 0 or more")

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.batch_tokens

    @property
    def heldout_interval(self) -> int:
        """Steps between held-out measurements."""
        return self.heldout_every or max(1, self.num_steps // 10)


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Train a child to agree with its parent (Puzzle's choice: cosine + KL, no LM loss).

    With both teacher terms at 0 and `lm_weight` 1 this is continued pretraining.
    """

    kl_weight: float = 1.0
    """Weight of KL(parent || child) on the next-token distributions."""
    cosine_weight: float = 1.0
    """Weight of 1 - cos between hidden states, summed over the layers."""
    lm_weight: float = 0.0
    """Weight of the next-token cross-entropy on the text."""
    keep_best: bool = True
    """Keep the weights with the best held-out figure, those at the start included."""
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(update=UpdateSettings(learning_rate=5e-4))
    )
    """The loop."""

    def __post_init__(self) -> None:
        weights = (self.kl_weight, self.cosine_weight, self.lm_weight)
        _require(min(weights) >= 0, "loss weights", weights, "must not be negative")
        _require(max(weights) > 0, "loss weights", weights, "at least one must be positive")

    @property
    def needs_teacher(self) -> bool:
        """Whether the parent is needed at all."""
        return self.kl_weight > 0 or self.cosine_weight > 0


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Train a Llama from random weights on a corpus, with the corpus's tokenizer."""

    num_hidden_layers: int = 8
    """Layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_attention_heads: int = 8
    """Query heads; each has hidden_size / num_attention_heads dimensions."""
    num_key_value_heads: int = 4
    """Key-value heads."""
    intermediate_size: int = 384
    """FFN width."""
    tie_word_embeddings: bool = True
    """Use the embedding table as the output matrix."""
    max_position_embeddings: int = 1024
    """Longest context the checkpoint states."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """The loop."""

    def __post_init__(self) -> None:
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "hidden_size",
            self.hidden_size,
            f"must be a multiple of num_attention_heads {self.num_attention_heads}",
        )
