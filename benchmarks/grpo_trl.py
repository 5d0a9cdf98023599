"""Our GRPO loss and gradient against TRL's, on the same stored rollouts: how equal, how fast.

    pip install fretsaw[oracles]
    python benchmarks/grpo_trl.py [--rounds 11] [--threads 1] [--json grpo_trl.json]

A random Llama of 2.0M parameters is read from one folder by both sides, in float32 on the CPU. 64
answers in groups of 8 are stored, once with equal lengths and once with a long tail; the previous
and the reference log-probabilities are the model's own with noise, so that ratios leave the clip
range and the KL penalty is not 0. Ours is `policy_gradient`, with packing; TRL's is GRPOTrainer's
own `_compute_loss` and `backward`, fed with tensors that are padded already. The script fails if a
loss or the gradient of all parameters differs by more than 1e-5.

Loss and backward are timed with the mean over answers and the KL penalty. A round runs ours, TRL
on all answers at once, ours, TRL in batches of 8 (its default); a gain is TRL's time over the mean
of ours in that round, and the noise floor is the second of ours over the first. TRL does without
gradient checkpointing, its default, which costs it time; and without its bias correction of the KL
penalty, a different loss.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import num_params
from fretsaw.rl.loss import Average
from fretsaw.rl.settings import RlSettings
from fretsaw.rl.update import answer_logprobs, policy_gradient
from fretsaw.rollout.rows import Row, read_rows, write_rows

try:
    import transformers
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]
except ImportError as error:
    sys.exit(f"grpo_trl: {error}; TRL 1.16 is needed, `pip install fretsaw[oracles]`")

NUM_GROUPS, GROUP_SIZE, MAX_TOKENS = 8, 8, 256
TOLERANCE = 1e-5
BARS = {"equal": 2.0, "long-tailed": 4.0}  # times as fast as TRL
TIMED = ("sequence", 0.04)  # the others do the same work
TRL_BATCHES = (NUM_GROUPS * GROUP_SIZE, 8)
LOSS_TYPES: dict[Average, str] = {"sequence": "grpo", "token": "bnpo"}  # ours -> TRL's name
CONFIG = ModelConfig.uniform(
    num_hidden_layers=8,
    num_key_value_heads=4,
    intermediate_size=480,
    vocab_size=512,
    hidden_size=128,
    num_attention_heads=8,
    head_dim=16,
    max_position_embeddings=1024,
)


# --- rollouts -------------------------------------------------------------------------------------


def roll_out(lengths: str, decoder: Decoder, rng: np.random.Generator, path: Path) -> list[Row]:
    """Store random answers with all that an update reads, and read them back."""
    num_answers = NUM_GROUPS * GROUP_SIZE
    if lengths == "equal":
        prompt_lengths, answer_lengths = [48] * NUM_GROUPS, [128] * num_answers
    else:
        prompt_lengths = rng.integers(24, 73, NUM_GROUPS).tolist()
        drawn = rng.lognormal(np.log(48), 1.0, num_answers).astype(int)
        answer_lengths = drawn.clip(1, MAX_TOKENS).tolist()
    prompts = [rng.integers(CONFIG.vocab_size, size=n).tolist() for n in prompt_lengths]
    rows = [
        Row(
            problem=f"p{i // GROUP_SIZE}",
            kind="random",
            mode="off",
            group=i // GROUP_SIZE,
            index=i % GROUP_SIZE,
            question="",
            prompt="",
            completion="",
            prompt_ids=prompts[i // GROUP_SIZE],
            token_ids=rng.integers(CONFIG.vocab_size, size=n).tolist(),
            logprobs=[],
            num_tokens=n,
            is_finished=True,
            temperature=1.0,
            top_p=1.0,
            seed=0,
            weight_version=0,
            correct=0.0,
            is_graded=True,
            fault=None,
            found="",
            expected="",
            reward=0.0,
            advantage=float(rng.normal()),
        )
        for i, n in enumerate(answer_lengths)
    ]
    own = answer_logprobs(decoder, rows, RlSettings().micro_batch_tokens, "fp32")

    def noisy(logprobs: list[float], scale: float) -> list[float]:
        return (np.array(logprobs) + rng.normal(0, scale, len(logprobs))).tolist()

    rows = [
        replace(row, trainer_logprobs=noisy(one, 0.2), ref_logprobs=noisy(one, 0.5))
        for row, one in zip(rows, own, strict=True)
    ]
    write_rows(path, rows)
    return read_rows(path)


def padded_inputs(rows: list[Row]) -> dict[str, Tensor]:
    """Return what TRL's loss takes: prompts padded on the left, answers on the right."""

    def pad(values: list[list[Any]], dtype: torch.dtype, side: str = "right") -> Tensor:
        tensors = [torch.tensor(one, dtype=dtype) for one in values]
        return pad_sequence(tensors, batch_first=True, padding_side=side)

    prompts, answers = [row.prompt_ids for row in rows], [row.token_ids for row in rows]
    return {
        "prompt_ids": pad(prompts, torch.long, "left"),
        "prompt_mask": pad([[1] * len(one) for one in prompts], torch.long, "left"),
        "completion_ids": pad(answers, torch.long),
        "completion_mask": pad([[1] * len(one) for one in answers], torch.long),
        "advantages": torch.tensor([row.advantage for row in rows]),
        "old_per_token_logps": pad([row.trainer_logprobs for row in rows], torch.float32),
        "ref_per_token_logps": pad([row.ref_logprobs for row in rows], torch.float32),
    }


# --- the two sides --------------------------------------------------------------------------------


def our_gradient(decoder: Decoder, rows: list[Row], settings: RlSettings) -> dict[str, float]:
    decoder.zero_grad()
    return policy_gradient(decoder, rows, settings, "fp32")


def trl_gradient(trainer: GRPOTrainer, inputs: dict[str, Tensor], batch_size: int) -> float:
    trainer.model.zero_grad()
    starts = range(0, NUM_GROUPS * GROUP_SIZE, batch_size)
    trainer.current_gradient_accumulation_steps = len(starts)  # the loss divides by it
    total = 0.0
    for at in starts:
        batch = {name: tensor[at : at + batch_size] for name, tensor in inputs.items()}
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        total += loss.item()
    return total


def build_trainer(folder: Path, settings: RlSettings) -> GRPOTrainer:
    """Make TRL's trainer of the checkpoint, with the settings that are ours."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = tokenizers.models.WordLevel({"<end>": 0}, unk_token="<end>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), eos_token="<end>", pad_token="<end>"
    )
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        loss_type=LOSS_TYPES[settings.average],
        beta=settings.kl_coef,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        importance_sampling_level="token",
        use_bias_correction_kl=False,
        temperature=1.0,
        num_generations=GROUP_SIZE,
        per_device_train_batch_size=TRL_BATCHES[0],
        max_completion_length=MAX_TOKENS,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [""] * NUM_GROUPS}),
        processing_class=tokenizer,
    )
    trainer.model.train()
    return trainer


# --- comparison -----------------------------------------------------------------------------------


def gradient_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Return |g - g'| / |g'| over all parameters, paired by name."""
    pairs = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert pairs[0].keys() == pairs[1].keys(), "the two models name their parameters differently"

    def flat(parameters: dict[str, nn.Parameter]) -> Tensor:
        grads = [parameters[name].grad for name in pairs[0]]
        found = [grad.flatten() for grad in grads if grad is not None]
        assert len(found) == len(grads), "a parameter has no gradient"
        return torch.cat(found).double()

    mine, reference = map(flat, pairs)
    return ((mine - reference).norm() / reference.norm()).item()


def time_rounds(
    ours: Callable[[], object], theirs: Callable[[int], object], num_rounds: int
) -> dict[str, Any]:
    def seconds(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    rounds = []
    for _ in range(num_rounds + 1):
        pairs = [(seconds(ours), seconds(lambda n=n: theirs(n))) for n in TRL_BATCHES]
        rounds.append(tuple(zip(*pairs, strict=True)))
    del rounds[0]  # a warm-up

    noise = [mine[1] / mine[0] for mine, _ in rounds]
    timed: dict[str, Any] = {
        "our_s": statistics.median(one for mine, _ in rounds for one in mine),
        "noise": [min(noise), max(noise)],
    }
    for i, n in enumerate(TRL_BATCHES):
        gains = [trl[i] / statistics.mean(mine) for mine, trl in rounds]
        timed[f"trl_{n}"] = {
            "s": statistics.median(trl[i] for _, trl in rounds),
            "gain": statistics.median(gains),
            "spread": [min(gains), max(gains)],
        }
    return timed


def compare(folder: Path, num_rounds: int) -> Iterator[dict[str, Any]]:
    """Yield, for every case, what differs, and for some the times."""
    decoder = Decoder(CONFIG)
    decoder.init_weights(0)
    checkpoint.save(decoder, folder / "model")
    decoder = checkpoint.load(folder / "model").train()
    averages: tuple[Average, ...] = ("sequence", "token")
    for lengths in BARS:
        rows = roll_out(lengths, decoder, np.random.default_rng(0), folder / f"{lengths}.parquet")
        inputs = padded_inputs(rows)
        num_padded = inputs["prompt_ids"].numel() + inputs["completion_ids"].numel()
        num_tokens = sum(len(row.prompt_ids) + len(row.token_ids) for row in rows)
        for average, kl_coef in product(averages, (0.04, 0.0)):
            settings = RlSettings(average=average, kl_coef=kl_coef, clip_low=0.2, clip_high=0.2)
            trainer = build_trainer(folder / "model", settings)
            figures = our_gradient(decoder, rows, settings)
            reference = trl_gradient(trainer, inputs, TRL_BATCHES[0])
            case = {
                "lengths": lengths,
                "padding": 1 - num_tokens / num_padded,
                "average": average,
                "kl_coef": kl_coef,
                "clipped": figures["clipped"],
                "loss": figures["loss"],
                "loss_difference": abs(figures["loss"] - reference),
                "gradient_difference": gradient_difference(decoder, trainer.model),
            }
            if (average, kl_coef) == TIMED:
                case |= time_rounds(
                    lambda s=settings, r=rows: our_gradient(decoder, r, s),
                    lambda n, t=trainer, i=inputs: trl_gradient(t, i, n),
                    num_rounds,
                )
            yield case


# --- what is printed ------------------------------------------------------------------------------


def print_case(case: dict[str, Any]) -> None:
    line = (
        "{lengths:12} {padding:6.0%}   {average:9} {kl_coef:.2f} {clipped:8.0%} {loss:9.5f}   "
        "{loss_difference:.1e}   {gradient_difference:.1e}"
    ).format(**case)
    if "our_s" in case:
        line += f"   {case['our_s']:6.3f}"
        line += "".join(" {s:8.3f} {gain:6.2f}x".format(**case[f"trl_{n}"]) for n in TRL_BATCHES)
    print(line, flush=True)


def print_verdict(case: dict[str, Any]) -> None:
    """Say who is ahead; a gain inside the noise floor is nobody's."""
    (low, high), bar = case["noise"], BARS[case["lengths"]]
    print(f"\n{case['lengths']}: noise floor {low:.2f} to {high:.2f}")
    for n in TRL_BATCHES:
        gain, spread = case[f"trl_{n}"]["gain"], case[f"trl_{n}"]["spread"]
        ahead = "nobody" if low <= gain <= high else "fretsaw" if gain > 1 else "TRL"
        print(
            f"  TRL in batches of {n}: {ahead} is ahead, fretsaw {gain:.2f}x as fast "
            f"({spread[0]:.2f} to {spread[1]:.2f}); bar {bar:.0f}x "
            f"{'met' if gain >= bar else 'MISSED'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # TRL sets an option by a name that its own dependency is about to rename.
    warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)

    packages = ("torch", "transformers", "trl", "fretsaw")
    result: dict[str, Any] = {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "parameters": num_params(CONFIG),
        "answers": NUM_GROUPS * GROUP_SIZE,
    }
    print(", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    print("{parameters:,} parameters, {answers} answers, {threads} thread(s)\n".format(**result))
    print(
        "lengths      padding  average    kl   clipped      loss    |d loss|   |d grad|   ours, s"
        + "".join(f" TRL {n:2}, s   gain" for n in TRL_BATCHES)
    )
    result["cases"] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in compare(Path(folder), options.rounds):
            print_case(case)
            result["cases"].append(case)
    for case in result["cases"]:
        if "our_s" in case:
            print_verdict(case)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")

    names = ("loss_difference", "gradient_difference")
    differences = [case[name] for case in result["cases"] for name in names]
    is_equal = all(one <= TOLERANCE for one in differences)  # False for NaN too
    print(
        f"\nlosses and gradients differ by up to {max(differences):.1e}, "
        f"{'within' if is_equal else 'BEYOND'} {TOLERANCE:.0e}"
    )
    sys.exit(0 if is_equal else 1)


if __name__ == "__main__":
    main()
