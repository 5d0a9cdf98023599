"""A run's phases: how the child's context grows from one to the next."""

from collections.abc import Sequence
from dataclasses import replace

from fretsaw.distill.settings import Phase
from fretsaw.model.config import ModelConfig, RopeScaling

LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR = 1.0, 4.0  # Llama 3.1's own


def phase_configs(
    config: ModelConfig, phases: Sequence[Phase], teacher_context: int | None
) -> list[ModelConfig]:
    """Return the network's config in every phase, the rotary changes of a phase staying.

    Raises `ValueError` where rows are longer than the context of the network or of its teacher.
    """
    configs = []
    for phase in phases:
        config = extended(config, phase)
        if phase.seq_len > config.max_position_embeddings:
            raise ValueError(
                f"seq_len {phase.seq_len}: the model's context is "
                f"{config.max_position_embeddings}; give at most that, or a phase of `lengths` "
                "with factor or theta"
            )
        if teacher_context is not None and phase.seq_len > teacher_context:
            raise ValueError(
                f"seq_len {phase.seq_len}: the parent's context is {teacher_context}, so it has "
                "nothing to teach beyond; train that phase with `fretsaw cpt`"
            )
        configs.append(config)
    return configs


def extended(config: ModelConfig, phase: Phase) -> ModelConfig:
    """Return the config with the phase's rotary scaling and base, its context at least a row.

    The scaling is Llama 3.1's: wavelengths longer than the context before it are stretched by
    `factor`, those shorter than a quarter of it are kept.
    """
    if phase.factor is None and phase.theta is None:
        return config
    scaling, before = config.rope_scaling, config.max_position_embeddings
    if phase.factor is not None:
        scaling = RopeScaling(
            factor=phase.factor,
            low_freq_factor=scaling.low_freq_factor if scaling else LOW_FREQ_FACTOR,
            high_freq_factor=scaling.high_freq_factor if scaling else HIGH_FREQ_FACTOR,
            original_max_position_embeddings=(
                scaling.original_max_position_embeddings if scaling else before
            ),
        )
    return replace(
        config,
        rope_theta=phase.theta or config.rope_theta,
        rope_scaling=scaling,
        max_position_embeddings=max(before, phase.seq_len),
    )
