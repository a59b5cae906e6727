"""How far the look of SR pictures is from the look of real ones, whichever picture is compared.

PSNR, SSIM and LPIPS compare each SR picture with its own HR picture: they are distortions.
Perceptual quality is a distance between the *distributions* of SR and of real pictures (Y. Blau,
T. Michaeli, "The perception-distortion tradeoff", CVPR 2018, arXiv:1711.06077), and no
method can be best at both. Here is one such distance, in the manner of FID (M. Heusel et al., "GANs
trained by a two time-scale update rule", 2017, arXiv:1706.08500), for patches rather than pictures,
since test sets of five to a hundred pictures are too small for FID itself.
"""

import torch
from torch import Tensor, nn

from srlab.models import vgg

TAP = "relu3_3"


class Moments:
    """Mean and covariance of vectors that arrive in portions; in double precision."""

    def __init__(self):
        self.n = 0
        self.sum: Tensor | float = 0.0
        self.products: Tensor | float = 0.0

    def update(self, rows: Tensor) -> None:
        """(N, D)."""
        rows = rows.double()
        self.n += len(rows)
        self.sum = self.sum + rows.sum(0)
        self.products = self.products + rows.T @ rows

    @property
    def mean(self) -> Tensor:
        return self.sum / self.n

    @property
    def covariance(self) -> Tensor:
        return self.products / self.n - torch.outer(self.mean, self.mean)


class PatchFrechet:
    """Fréchet distance between the patches of SR and HR pictures, as VGG16 sees them.

    At its layer ``relu3_3`` VGG16 describes the 40 x 40 pixels around every fourth pixel by 256
    numbers. All places of all pictures make two clouds of points, and the distance between the
    Gaussians of the same mean and covariance is taken. It doesn't ask whether a patch stands where
    it stood in HR, only whether there are as many of its kind. Divided by the variance of the HR
    cloud it has a natural unit: 0 for equal clouds; 1 for pictures without any structure that have
    HR's mean features.

    Compare it only for the same set: the set's own pictures are the sample of real ones.

    Args:
        features: by default VGG16's; (N, 3, H, W) -> {tap: (N, C, h, w)} with a single tap.
        real: the HR cloud of the same pictures from another instance's ``hr``, which saves half of
            the time; :meth:`update` then leaves HR out.

    Raises:
        FeatureError: VGG16's weights are not at hand.
    """

    def __init__(self, features: nn.Module | None = None, real: Moments | None = None):
        if features is None:
            features = vgg.load("vgg16", [TAP]).to(memory_format=torch.channels_last)
        self.features = features
        self.sr, self.hr = Moments(), real or Moments()
        self.counts_hr = real is None

    @torch.no_grad()
    def update(self, sr: Tensor, hr: Tensor) -> None:
        """Count in pictures, (N, 3, H, W) RGB in [0, 1]; the two may be of different sizes."""
        self.features.to(sr.device)
        for moments, image in ((self.sr, sr), (self.hr, hr))[: 1 + self.counts_hr]:
            (maps,) = self.features(image.clamp(0, 1)).values()
            moments.update(maps.permute(0, 2, 3, 1).flatten(0, 2))

    def compute(self) -> float:
        """Of all pictures so far."""
        distance = frechet(self.sr.mean, self.sr.covariance, self.hr.mean, self.hr.covariance)
        return float(distance / self.hr.covariance.trace())


def frechet(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> Tensor:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: ||m1 - m2||^2 + tr(C1 + C2 -
    2 (C1 C2)^(1/2)).

    D. Dowson, B. Landau, "The Fréchet distance between multivariate normal distributions", 1982.
    The trace of the root is taken from the symmetric C1^(1/2) C2 C1^(1/2), which has the same
    eigenvalues as C1 C2 and, unlike a general matrix root, never leaves the real numbers.
    """
    values, vectors = torch.linalg.eigh(covariance1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    between = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp(min=0).sqrt().sum()
    apart = (mean1 - mean2).square().sum()
    return apart + covariance1.trace() + covariance2.trace() - 2 * between
