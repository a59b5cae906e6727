"""Critics: networks that look at an image and say how real it seems."""

from torch import Tensor, nn


class Discriminator(nn.Module):
    """The SRGAN discriminator: eight convolutions, every second one with stride 2.

    C. Ledig et al., CVPR 2017, arXiv:1609.04802, figure 4. The score is a logit: the paper's
    closing sigmoid belongs to the loss (:func:`srlab.losses.bce_critic`), where it is stable.

    Args:
        patch_size: side of the HR crops that it will see, in pixels, a multiple of 16 (96 in the
            paper). The dense layer needs to know it.
        n_features: channels of the first layer; doubled three times on the way.

    Shape: (N, 3, patch_size, patch_size) RGB in [0, 1] -> (N, 1).
    """

    def __init__(self, patch_size: int = 96, n_features: int = 64):
        super().__init__()
        if patch_size % 16 or patch_size < 16:
            raise ValueError(f"patch_size must be a positive multiple of 16, got {patch_size}")
        self.patch_size = patch_size
        widths = [n_features * m for m in (1, 1, 2, 2, 4, 4, 8, 8)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, 8):
            stride = 2 if i % 2 else 1
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], 3, stride, padding=1),
                nn.BatchNorm2d(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * (patch_size // 16) ** 2, 1024),
            nn.LeakyReLU(0.2),
            nn.Linear(1024, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.patch_size, self.patch_size):
            raise ValueError(
                f"this Discriminator judges {self.patch_size} x {self.patch_size} crops, got "
                f"{tuple(image.shape)}: build it with Discriminator(patch_size=...)"
            )
        return self.classifier(self.features(image))
