"""Times of probe models in our own engine, on the device the stage runs on."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from fretsaw.engine.timing import (
    DecodeLoad,
    describe_hardware,
    time_decode,
    time_prefill,
    torch_dtype,
)
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.quantised import randomise_codes
from fretsaw.scenario.scenario import Scenario


class EngineTimes:
    """Opens models of random weights, since times do not depend on the weights."""

    is_interleaved = True

    def __init__(self, config: ModelConfig, dtype: str, device: str):
        self._config, self._dtype, self._device = config, torch_dtype(dtype), device
        self.hardware = describe_hardware(device)

    @contextlib.contextmanager
    def open(
        self, name: str, blocks: Sequence[BlockConfig]
    ) -> Iterator[Callable[[Scenario, int], dict[str, float]]]:
        """Yield what times a model of these blocks at a scenario, in a round."""
        with torch.device(self._device):
            decoder = Decoder(replace(self._config, blocks=tuple(blocks)))
            randomise_codes(decoder)
        decoder = decoder.to(self._dtype).eval().requires_grad_(False)

        def time(scenario: Scenario, round_index: int) -> dict[str, float]:
            load = DecodeLoad(scenario.batch, scenario.prompt_tokens, scenario.output_tokens)
            return {
                "prefill_ms": time_prefill(decoder, load),
                "decode_ms": time_decode(decoder, load),
            }

        yield time
