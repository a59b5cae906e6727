"""srlab.models.critics.VGGCritic and the discriminator's options."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from srlab import losses
from srlab.models.critics import Discriminator, VGGCritic
from srlab.models.vgg import Features
from srlab.training.config import AdversarialConfig
from srlab.training.rules import check_critic


def trunk(taps=("relu2_2",)):
    torch.manual_seed(0)
    return Features(taps, width=1 / 16)


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def train_one_step(critic, images):
    """Adam over everything that may learn, on a loss that involves the penalty."""
    optimizer = torch.optim.Adam([p for p in critic.parameters() if p.requires_grad], 1e-3)
    real, fake = images[:2], images[2:]
    loss = losses.wasserstein_critic(critic(real), critic(fake))
    (loss + losses.gradient_penalty(critic, real, fake)).backward()
    optimizer.step()


@pytest.mark.parametrize("finetune", [False, True])
@pytest.mark.parametrize("pixel_branch", [False, True])
def test_what_is_frozen_stays_and_what_learns_moves(images, finetune, pixel_branch):
    features = trunk()
    given = {n: t.clone() for n, t in features.state_dict().items()}
    critic = VGGCritic(features, finetune=finetune, pixel_branch=pixel_branch, n_features=8)
    before = {n: t.clone() for n, t in critic.state_dict().items()}
    critic.train()
    train_one_step(critic, images)
    moved = {n for n, t in critic.state_dict().items() if not torch.equal(t, before[n])}
    parameters = dict(critic.named_parameters())
    # The last bias shifts real and fake scores alike: nothing to learn.
    should = {n for n in parameters if finetune or not n.startswith("trunk.")} - {"head.4.bias"}
    assert moved - {"head.4.bias"} == should
    # Whoever else uses the same features sees them as they were.
    assert all(torch.equal(t, given[n]) for n, t in features.state_dict().items())
    names = {n for n, p in parameters.items() if any(p is q for q in critic.trunk_parameters())}
    assert names == {n for n in parameters if finetune and n.startswith("trunk.")}


def test_scores_are_one_a_picture_or_one_a_place(images):
    features = trunk(("relu1_1", "relu3_1"))  # the deepest is judged, at a quarter of the size
    assert VGGCritic(features)(images).shape == (4, 1)
    patches = VGGCritic(features, patch=True, pixel_branch=True)
    assert patches(images).shape == (4, 1, 8, 8)
    torch.manual_seed(2)
    whole = VGGCritic(features, patch=False)
    whole_as_patches = VGGCritic(features, patch=True)
    whole_as_patches.load_state_dict(whole.state_dict())
    assert_close(whole_as_patches(images).mean((2, 3)), whole(images))


def test_each_picture_is_judged_by_itself(images):
    critics = [Discriminator(32, 4, norm=norm) for norm in ("instance", "group")]
    for critic in (VGGCritic(trunk(), pixel_branch=True), *critics):
        critic.train()
        assert_close(critic(images)[:1], critic(images[:1]), rtol=1e-4, atol=1e-5)
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules())


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_discriminators_of_all_norms_have_the_same_convolutions(norm):
    shapes = {
        n: t.shape for n, t in Discriminator(32, 4).state_dict().items() if t.ndim == 4
    }  # weights of convolutions
    other = Discriminator(32, 4, norm=norm)
    assert {n: t.shape for n, t in other.state_dict().items() if t.ndim == 4} == shapes
    kinds = [type(m).__name__ for m in other.features]
    expected = {
        "batch": "BatchNorm2d", "instance": "InstanceNorm2d", "group": "GroupNorm",
        "none": "Identity",
    }[norm]  # fmt: skip
    assert kinds.count(expected) == 7


@pytest.mark.parametrize(
    ("n_features", "groups"), [(64, [4, 8, 8, 16, 16, 32, 32]), (4, [1, 1, 1, 1, 1, 2, 2])]
)
def test_group_norm_takes_sixteen_channels_at_a_time(n_features, groups):
    critic = Discriminator(32, n_features, norm="group")
    assert [m.num_groups for m in critic.features if isinstance(m, nn.GroupNorm)] == groups


def test_an_unknown_norm():
    with pytest.raises(
        ValueError, match="norm must be one of batch, instance, group, none, got 'layer'"
    ):
        Discriminator(32, norm="layer")


@pytest.mark.parametrize(
    "build",
    [
        lambda: Discriminator(32, 4, norm="none", spectral=True),
        lambda: VGGCritic(trunk(), pixel_branch=True, n_features=8, spectral=True),
    ],
)
def test_spectral_norm_divides_by_the_largest_singular_value(build, images):
    critic = build().train()
    for _ in range(60):  # one power iteration a call
        critic(images)
    critic.eval()
    checked = 0
    for name, module in critic.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not name.startswith("trunk"):
            largest = torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)
            assert largest.item() == pytest.approx(1, abs=0.05)
            checked += 1
    assert checked >= 5
    assert all("parametrizations" not in n for n, _ in critic.named_parameters() if "trunk" in n)


@pytest.mark.parametrize("tap", ["conv1_1", "pool1", "relu2_2", "pool2", "pool4"])
@pytest.mark.parametrize("size", [(32, 32), (37, 51)])
def test_the_pixel_branch_meets_every_tap_at_its_size(tap, size):
    features = trunk((tap,))
    image = torch.rand(2, 3, *size)
    critic = VGGCritic(features, pixel_branch=True, patch=True, n_features=8)
    assert critic(image).shape[-2:] == features(image)[tap].shape[-2:]


@pytest.mark.parametrize("finetune", [False, True])
def test_a_spectral_critic_is_accepted_and_follows_its_trunk(images, finetune):
    config = AdversarialConfig(adversarial="wasserstein", lipschitz="spectral")
    critic = VGGCritic(trunk(), finetune=finetune, n_features=8, spectral=True)
    check_critic(critic, config)
    with torch.no_grad():
        for p in critic.trunk_parameters():
            p.copy_(torch.randn_like(p))
    critic.train()
    for _ in range(60):
        critic(images)
    critic.eval()
    for module in critic.trunk.layers if finetune else ():
        if isinstance(module, nn.Conv2d):
            largest = torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)
            assert largest.item() == pytest.approx(1, abs=0.05)


def test_a_frozen_trunk_stays_frozen_when_the_whole_critic_is_thawed():
    critic = VGGCritic(trunk(), n_features=8).requires_grad_(False).requires_grad_(True)
    assert {n.split(".")[0] for n, p in critic.named_parameters() if p.requires_grad} == {
        "norm",
        "head",
    }
    assert all(
        p.requires_grad for p in VGGCritic(trunk(), finetune=True).requires_grad_(True).parameters()
    )


def test_instance_norm_needs_more_than_one_pixel():
    with pytest.raises(ValueError, match="norm='instance' needs patch_size=32"):
        Discriminator(16, norm="instance")
