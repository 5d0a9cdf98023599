"""A run of two rollouts that takes a second."""

from fretsaw.rl.settings import RlSettings
from fretsaw.training.settings import UpdateSettings

SETTINGS = RlSettings(
    task="",
    num_rollouts=2,
    prompts_per_rollout=8,
    group_size=8,
    on_share=0.25,
    updates_per_rollout=2,
    max_tokens=12,
    heldout_problems=2,
    heldout_every=1,
    micro_batch_tokens=512,
    kl_coef=0.05,
    update=UpdateSettings(learning_rate=1e-3),
)
