"""What a student is trained to minimise, and the held-out figures that tell how far it got."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fretsaw.distill.teacher import CachedTeacher, TopK, teacher_of_heldout
from fretsaw.model.decoder import Decoder
from fretsaw.stage.peers import ALONE, Peers
from fretsaw.training.losses import cosine_distance, cross_entropy, kl_divergence, kl_from_top_k
from fretsaw.training.precision import autocast


@dataclass(frozen=True)
class Objective:
    """What is minimised: a weighted sum of three terms, two of which need a teacher."""

    kl: float = 0.0
    cosine: float = 0.0
    lm: float = 1.0
    layers: tuple[int, ...] = ()  # the teacher's that the student's are like; (): one for one

    def weigh(self, terms: Mapping[str, Any]) -> Any:
        """Return the weighted sum of the terms that are there."""
        weights = {"kl": self.kl, "cosine": self.cosine, "lm": self.lm}
        return sum(weights[name] * value for name, value in terms.items() if name in weights)


def losses(
    student: Decoder,
    teacher: Decoder | TopK | None,
    window: Int[Tensor, "rows seq_plus_1"],
    objective: Objective,
    dtype: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted loss and its terms, each summed over the tokens of `window`."""
    token_ids, targets = window[:, :-1], window[:, 1:]
    is_live = isinstance(teacher, Decoder)
    student_states: list[Tensor] | None = [] if is_live and objective.cosine else None
    with autocast(student.device, dtype):
        hidden = student.hidden_states(token_ids, collect=student_states).flatten(0, 1)
        head = student.head_weight
        terms = {}
        if objective.lm:
            terms["lm"] = cross_entropy(hidden, head, targets.flatten())
        if isinstance(teacher, TopK) and objective.kl:
            log_probs, ids = teacher.log_probs.flatten(0, 1), teacher.ids.flatten(0, 1)
            terms["kl"] = kl_from_top_k(log_probs, ids, hidden, head)
        if isinstance(teacher, Decoder):
            teacher_states: list[Tensor] | None = [] if objective.cosine else None
            with torch.no_grad():
                target = teacher.hidden_states(token_ids, collect=teacher_states).flatten(0, 1)
            if objective.kl:
                terms["kl"] = kl_divergence(target, teacher.head_weight, hidden, head)
            if student_states and teacher_states:
                layers = objective.layers or range(len(teacher_states))
                pairs = zip((teacher_states[i] for i in layers), student_states, strict=True)
                distances = [cosine_distance(t.flatten(0, 1), s.flatten(0, 1)) for t, s in pairs]
                terms["cosine"] = torch.stack(distances).sum()
    return objective.weigh(terms), {name: value.detach() for name, value in terms.items()}


@torch.no_grad()
def heldout_figures(
    student: Decoder,
    teacher: Decoder | CachedTeacher | None,
    heldout: Int[Tensor, "rows seq_plus_1"],
    micro_rows: int,
    dtype: str,
    peers: Peers = ALONE,
) -> dict[str, float]:
    """Return held-out cross-entropy and, with a teacher, KL from it, in nats a token."""
    objective = Objective(kl=1.0 if teacher is not None else 0.0, lm=1.0)
    sums: dict[str, float] = {}
    for at, counts in peers.rounds(range(0, len(heldout), micro_rows)):
        micro = heldout[at : at + micro_rows]
        taught = teacher_of_heldout(teacher, at, at + len(micro), str(heldout.device))
        _, terms = losses(student, taught, micro, objective, dtype)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + (value.item() if counts else 0.0)
    sums = peers.total(sums)
    num_tokens = heldout[:, 1:].numel()
    return {"loss" if name == "lm" else name: value / num_tokens for name, value in sums.items()}
