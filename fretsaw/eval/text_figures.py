"""How well models foretell held-out text, and how far they agree on it."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from fretsaw.model.decoder import Decoder
from fretsaw.stage.execute import StageRun
from fretsaw.training.losses import kl_from_log_probs
from fretsaw.training.settings import MAX_LOGITS


@torch.inference_mode()
def text_figures(
    models: Mapping[str, Decoder],
    rows: Int[Tensor, "rows seq_plus_1"],
    batch: int,
    run: StageRun,
    sources: Int[Tensor, "rows seq"] | None = None,
) -> list[dict[str, float]]:
    """Return loss and perplexity of each model, KL from the parent, and top-1 agreement with it.

    First those of all targets, then those of each source that `sources` numbers.
    """
    of_target = torch.zeros_like(rows[:, 1:]) if sources is None else sources
    num_sources = int(of_target.max()) + 1
    size = max(1, MAX_LOGITS // max(model.config.vocab_size for model in models.values()))
    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor, of: Tensor) -> None:
        total = torch.bincount(of, weights=value.flatten().double().cpu(), minlength=num_sources)
        sums[name] = sums[name] + total if name in sums else total

    run.progress.start("held-out text", len(rows), unit="row")
    for at in range(0, len(rows), batch):
        token_ids, targets = rows[at : at + batch, :-1], rows[at : at + batch, 1:].flatten()
        of = of_target[at : at + batch].flatten().cpu()
        hidden = {name: m.hidden_states(token_ids).flatten(0, 1) for name, m in models.items()}
        for some in torch.arange(len(targets)).split(size):  # logits of all would be the largest
            logits = {n: F.linear(hidden[n][some], m.head_weight) for n, m in models.items()}
            log_probs = {name: values.float().log_softmax(-1) for name, values in logits.items()}
            add("tokens", torch.ones(len(some)), of[some])
            for name, values in log_probs.items():
                add(f"{name}_loss", F.nll_loss(values, targets[some], reduction="none"), of[some])
            if "parent" in log_probs:
                parent, child = log_probs["parent"], log_probs["child"]
                add("kl", kl_from_log_probs(parent, child), of[some])
                add("top1_agreement", parent.argmax(-1) == child.argmax(-1), of[some])
        run.step(min(at + batch, len(rows)), row=False)
    parts = [{name: value.sum().item() for name, value in sums.items()}]
    if sources is not None:
        parts += [{n: value[i].item() for n, value in sums.items()} for i in range(num_sources)]
    return [_means(own) for own in parts]


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Return sums over tokens as figures of one; nothing where there are no tokens."""
    if not sums["tokens"]:
        return {}
    own = {name: value / sums["tokens"] for name, value in sums.items() if name != "tokens"}
    losses = [name for name in own if name.endswith("_loss")]
    return own | {
        f"{name.removesuffix('_loss')}_perplexity": math.exp(own[name]) for name in losses
    }
