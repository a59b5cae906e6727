"""srlab.evaluation.distribution against closed forms, scipy and torchmetrics."""

import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from srlab.evaluation.distribution import Moments, PatchFrechet, frechet
from srlab.models import pretrained


def gaussian(seed, d=6):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(d, generator=generator, dtype=torch.float64), a @ a.T


def test_independent_components_have_a_closed_form():
    """Each adds (m1 - m2)^2 + (s1 - s2)^2."""
    mean1, mean2, s1, s2 = torch.rand(4, 5, dtype=torch.float64)
    got = frechet(mean1, s1.square().diag(), mean2, s2.square().diag())
    assert got == pytest.approx(float(((mean1 - mean2) ** 2 + (s1 - s2) ** 2).sum()))


def test_the_general_case_is_scipys():
    (mean1, c1), (mean2, c2) = gaussian(1), gaussian(2)
    root = torch.from_numpy(sqrtm((c1 @ c2).numpy()).real)
    wanted = (mean1 - mean2).square().sum() + (c1 + c2 - 2 * root).trace()
    assert frechet(mean1, c1, mean2, c2) == pytest.approx(float(wanted))
    assert frechet(mean2, c2, mean1, c1) == pytest.approx(float(wanted))
    assert frechet(mean1, c1, mean1, c1) == pytest.approx(0, abs=1e-9)


def test_moments_in_portions_are_those_of_the_whole():
    rows = torch.randn(50, 4, dtype=torch.float64) + 3
    moments = Moments()
    for part in rows.split(17):
        moments.update(part)
    assert torch.allclose(moments.mean, rows.mean(0))
    assert torch.allclose(moments.covariance, torch.cov(rows.T, correction=0))


class Pixels(nn.Module):
    """A place is described by its own colour."""

    def forward(self, image):
        return {"pixels": image}


def test_colours_moved_and_stretched():
    """x -> a x + b changes mean and covariance in a known way, and the order of pixels nothing."""
    torch.manual_seed(0)
    hr = torch.rand(2, 3, 40, 40)
    distance = PatchFrechet(Pixels())
    distance.update(0.5 * hr.flip(-1) + 0.1, hr)
    rows = hr.permute(0, 2, 3, 1).reshape(-1, 3).double()
    spread = rows.var(0, correction=0).sum()
    wanted = (0.5 * rows.mean(0) - 0.1).square().sum() / spread + (1 - 0.5) ** 2
    assert distance.compute() == pytest.approx(float(wanted), rel=1e-5)

    same, flat = PatchFrechet(Pixels()), PatchFrechet(Pixels())
    same.update(hr.transpose(-1, -2), hr)
    assert same.compute() == pytest.approx(0, abs=1e-6)
    again = PatchFrechet(Pixels(), real=distance.hr)
    again.update(0.5 * hr + 0.1, hr)
    assert again.compute() == pytest.approx(distance.compute(), rel=1e-6)
    flat.update(hr.mean(dim=(0, 2, 3), keepdim=True).expand_as(hr), hr)
    assert flat.compute() == pytest.approx(1, abs=1e-6)


def test_equals_torchmetrics_fid_with_the_same_features():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Colours(nn.Module):
        num_features = 3

        def forward(self, image):
            return image.double()[..., 0, 0]

    torch.manual_seed(0)
    real, fake = torch.rand(200, 3, 1, 1), torch.rand(200, 3, 1, 1).square()
    fid = FrechetInceptionDistance(Colours(), normalize=True)
    fid.update(real, real=True)
    fid.update(fake, real=False)
    ours = PatchFrechet(Pixels())
    ours.update(fake, real)
    # Theirs divides by n - 1.
    wanted = fid.compute() / torch.cov(real.flatten(1).T.double()).trace()
    assert ours.compute() == pytest.approx(float(wanted), rel=1e-2)


def test_a_place_of_vgg16s_layer_sees_40_pixels():
    from srlab.models.vgg import Features

    torch.manual_seed(0)
    features = Features(["relu3_3"], width=1 / 8, net="vgg16")
    image = torch.rand(1, 3, 80, 80, requires_grad=True)
    features(image)["relu3_3"][0, :, 10, 10].sum().backward()
    rows = (image.grad[0].abs().sum(dim=(0, 2)) > 0).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 40


def test_more_blur_is_farther_from_photographs(photo):
    from torchvision.transforms.functional import gaussian_blur

    if not pretrained.VGG16.find():
        pytest.skip("needs VGG16's weights")
    found = []
    for sigma in (0.5, 1.0, 2.0):
        distance = PatchFrechet()
        distance.update(gaussian_blur(photo[None], 13, sigma), photo[None])
        found.append(distance.compute())
    assert 0 < found[0] < found[1] < found[2]
