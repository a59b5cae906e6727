"""srlab.training.config: settings that make no sense are refused before anything is trained."""

import dataclasses

import pytest

from srlab.errors import SrlabError
from srlab.training.config import AdversarialConfig, PretrainConfig


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (PretrainConfig, "steps", 0),
        (PretrainConfig, "batch_size", -1),
        (PretrainConfig, "patch_size", 0),
        (PretrainConfig, "log_every", 0),
        (PretrainConfig, "validate_every", -100),
        (PretrainConfig, "checkpoint_every", -1),
        (PretrainConfig, "lr", 0.0),
        (PretrainConfig, "lr", float("nan")),
        (PretrainConfig, "loss", "l2"),
        (PretrainConfig, "schedule", "linear"),
        (PretrainConfig, "validate_every", 30),  # log_every is 20: the figure would have no row
        (PretrainConfig, "ema_decay", 1.0),
        (AdversarialConfig, "generator_lr", 0.0),
        (AdversarialConfig, "critic_lr", -1e-4),
        (AdversarialConfig, "content", "vgg"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(kind, field, value):
    with pytest.raises(SrlabError) as error:
        kind(**{field: value})
    assert f"{kind.__name__}.{field}" in str(error.value)
    assert str(value) in str(error.value)


def test_validation_may_be_left_to_the_end():
    assert PretrainConfig(validate_every=0).validate_every == 0


def test_a_setting_cannot_change_during_a_run():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PretrainConfig().lr = 1.0
