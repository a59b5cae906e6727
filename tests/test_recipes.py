"""srlab.training.recipes: what a name stands for, and that the parts arrive where they belong."""

import pytest
import torch

from srlab.data.bank import PatchBank
from srlab.data.images import write_image
from srlab.errors import SrlabError
from srlab.losses import Perceptual
from srlab.models import zoo
from srlab.models.critics import Discriminator, NoCritic, VGGCritic
from srlab.models.generators import WDRN, SRResNet
from srlab.models.vgg import Features
from srlab.training import recipes
from srlab.training.engine import default_fabric
from srlab.training.monitor import read_log
from srlab.training.recipes import RECIPES, Recipe, build_critic, train
from srlab.training.state import load_checkpoint, save_checkpoint

QUIET = {"steps": 2, "batch_size": 2, "patch_size": 8, "validate_every": 0, "checkpoint_every": 0}


@pytest.fixture
def bank():
    random = torch.Generator().manual_seed(0)
    return PatchBank([torch.randint(256, (3, 64, 80), generator=random, dtype=torch.uint8)])


@pytest.fixture(scope="module")
def how():
    return {"fabric": default_fabric("cpu"), "progress": False}


def test_every_architecture_and_both_games_have_a_recipe():
    trainable = {name for name in zoo.ARCHITECTURES if name != "bicubic"}
    assert {name for name, recipe in RECIPES.items() if not recipe.is_game} == trainable
    games = {name: recipe for name, recipe in RECIPES.items() if recipe.is_game}
    assert set(games) == {"srgan", "wdrn-vgg-wgan"}
    assert all(recipe.generator in zoo.released() for recipe in games.values())


def test_a_name_trains_a_fresh_network_from_the_seed(bank, how, tmp_path):
    recipe = Recipe("srresnet", settings={"optimizer": "muon"})
    results = []
    for seed, folder in ((1, "a"), (1, "b"), (2, "c")):
        bank.generator.manual_seed(0)
        result = train(recipe, bank, tmp_path / folder, settings=QUIET, seed=seed, **how)
        results.append(torch.cat([p.flatten() for p in result.generator.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_game_measures_what_it_pays_and_leaves_the_crops_as_they_come(bank, how, tmp_path):
    drawn = []
    draw = bank.batch
    bank.batch = lambda *shape: drawn.append(pair := draw(*shape)) or pair
    generator = WDRN(1, 2, 8, 4)
    picture = tmp_path / "held out.png"
    write_image(torch.rand(3, 64, 64), picture)
    result = train(
        "wdrn-vgg-wgan", bank, tmp_path / "run", generator=generator, critic_width=8,
        settings=QUIET | {"log_every": 1}, held_out=[picture], **how,
    )  # fmt: skip
    log = read_log(tmp_path / "run" / "log.csv")
    assert {"perceptual", "penalty", "adversarial", "val_psnr"} <= set(log)
    assert result.step == 2
    # The first crops only calibrated the loss; the game starts with the same ones.
    fresh = PatchBank([torch.zeros(3, 64, 80, dtype=torch.uint8)])
    fresh.batch(2, 8)
    calibration, first = drawn[0], drawn[1]
    assert len(calibration[0]) == 16
    assert len(first[0]) == 2
    for _ in drawn[2:]:
        fresh.batch(2, 8)
    assert torch.equal(bank.generator.get_state(), fresh.generator.get_state())


def test_texture_is_compared_by_vgg16_unless_it_is_left_out(bank, how, tmp_path, monkeypatch):
    def load(name, taps, pool):
        torch.manual_seed(0)
        return Features(taps, width=1 / 8, net="vgg16", pool=pool)

    monkeypatch.setattr(recipes.vgg, "load", load)
    losses = {}
    for texture in (True, False):
        result = train(
            "srgan", bank, tmp_path / f"{texture}", generator=SRResNet(1, 8, batch_norm=False),
            features="vgg16", texture=texture, critic_width=8, settings=QUIET | {"log_every": 1},
            **how,
        )  # fmt: skip
        losses[texture] = read_log(result.folder / "log.csv")["perceptual"][1][0]
    hr = bank.batch(4, 8)[1]
    perceptual = recipes.build_perceptual(hr, "vgg16")
    plain = Perceptual(perceptual.features, perceptual.weights)
    blurred = torch.nn.functional.avg_pool2d(hr, 5, 1, 2)
    assert perceptual(blurred, hr) > plain(blurred, hr)
    assert perceptual(hr, hr) == plain(hr, hr) == 0
    assert losses[True] != losses[False]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"texture": False}, "perceptual_texture = 2.0, now 0.0"),
        ({"pool": "max"}, "perceptual_pool = 'avg', now 'max'"),
        ({"features": "vgg19"}, "perceptual_net = 'vgg16', now 'vgg19'"),
    ],
)
def test_a_game_goes_on_with_its_own_perceptual_loss_only(
    bank, how, tmp_path, monkeypatch, change, why
):
    monkeypatch.setattr(
        recipes.vgg, "load", lambda name, taps, pool: Features(taps, 1 / 8, name, pool)
    )

    def play(steps, **options):
        options = {"features": "vgg16"} | options
        return train(
            "srgan", bank, tmp_path, generator=SRResNet(1, 8, batch_norm=False), critic_width=8,
            settings=QUIET | {"steps": steps}, **options, **how,
        )  # fmt: skip

    play(2)
    saved = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(SrlabError, match=f"other settings .*{why}"):
        play(3, **change)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == saved
    state, info = load_checkpoint(tmp_path / "checkpoint.safetensors")
    told = [key for key in info["config"] if key.startswith("perceptual_") and "weight" not in key]
    for key in told:  # as in a checkpoint of before
        del info["config"][key]
    save_checkpoint(tmp_path / "checkpoint.safetensors", state, info)
    assert play(3).step == 3


def test_the_control_plays_without_an_opponent(bank, how, tmp_path):
    recipe = recipes.with_critic(Recipe("srresnet", "discriminator", {"content": "l1"}), "none")
    assert recipe.settings["adversarial_weight"] == 0
    train(
        recipe, bank, tmp_path, generator=SRResNet(1, 8), settings=QUIET | {"log_every": 1}, **how
    )
    log = read_log(tmp_path / "log.csv")
    assert all(gap == 0 for gap in log["gap"][1])


def test_a_critic_that_does_not_fit():
    with pytest.raises(SrlabError, match="--critic is for games"):
        recipes.with_critic(RECIPES["wdrn"], "none")
    with pytest.raises(SrlabError, match="must be discriminator, vgg or none, got 'nobody'"):
        recipes.with_critic(RECIPES["srgan"], "nobody")


def test_critics_by_name():
    assert isinstance(build_critic(Recipe("wdrn", "none"), 32), NoCritic)
    assert isinstance(build_critic(RECIPES["wdrn-vgg-wgan"], 32, width=8), VGGCritic)
    critic = build_critic(RECIPES["srgan"], 32, width=8)
    assert isinstance(critic, Discriminator)
    assert critic.features[0].out_channels == 8


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(SrlabError, match=r"unknown model 'srgann': choose one of .*wdrn-vgg-wgan"):
        recipes.find("srgann")
