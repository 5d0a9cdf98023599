"""The weights that a run ends with: those of its best held-out figure."""

from collections.abc import Mapping
from dataclasses import dataclass

from fretsaw.training.state import TrainingState


@dataclass(frozen=True)
class BestWeights:
    """The weights with the best held-out figure since a phase began, kept beside the run's state.

    Without `keep` the first figure of a phase is noted, and the run ends with its last weights.
    """

    state: TrainingState
    figure: str  # what is compared; the lower, the better
    keep: bool

    def begin(self, figures: Mapping[str, float]) -> None:
        """Take the weights that a phase begins with for the best so far."""
        self.state.scalars["best"] = figures[self.figure]
        if self.keep:
            self.state.save_best()

    def consider(self, figures: Mapping[str, float]) -> None:
        """Take the weights of now for the best where their figure is better."""
        if self.keep and figures[self.figure] < self.state.scalars["best"]:
            self.state.scalars |= {"best": figures[self.figure], "best_step": self.state.step}
            self.state.save_best()

    def restore(self) -> None:
        """Give the model its best weights."""
        if self.keep:
            self.state.load_best()
