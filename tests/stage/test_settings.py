"""Settings from plain values: unknown keys and wrong types are named."""

import dataclasses

import pytest

from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import DistillSettings, PretrainSettings
from fretsaw.stage.settings import build, override


def test_settings_survive_a_round_trip_through_plain_values() -> None:
    for settings in (DistillSettings(lm_weight=0.5), PretrainSettings(), CorpusSettings()):
        assert build(type(settings), dataclasses.asdict(settings)) == settings


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"lm_wieght": 1.0}, "unknown key 'lm_wieght'; did you mean 'lm_weight'"),
        ({"keep_best": 1}, "1 is int; it takes bool"),
        ({"lm_weight": "much"}, "'much' is str; it takes float"),
        ({"train": 3}, "keys of its own"),
        ({"train": {"tokens": 1.5}}, "train.tokens: 1.5 is float; it takes int"),
        ({"train": {"tokens": True}}, "True is bool; it takes int"),
    ],
)
def test_wrong_values_are_named(values: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build(DistillSettings, values)


def test_a_choice_names_the_choices() -> None:
    with pytest.raises(ValueError, match="choose one of 'files', 'hub', 'self', 'world'"):
        build(CorpusSettings, {"source": "web"})


def test_one_value_is_replaced_by_its_dotted_name() -> None:
    settings = override(DistillSettings(), "train.update.learning_rate", "2e-4")
    assert settings.train.update.learning_rate == 2e-4
    assert override(CorpusSettings(), "source", "world").source == "world"
    with pytest.raises(ValueError, match="has no 'trian'"):
        override(DistillSettings(), "trian.tokens", "5")
