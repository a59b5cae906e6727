"""What several test files share: a photograph, a full disk, a bicubic resize that is not ours."""

import math
import sys
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch
from jupyter_client.provisioning import local_provisioner
from PIL import Image
from processes import Kernel

from srlab.data.datasets import find

launch_kernel = local_provisioner.launch_kernel
if sys.platform == "linux":  # chapters' kernels begin with torch imported
    local_provisioner.launch_kernel = Kernel


@pytest.fixture
def new_kernels(monkeypatch):
    """Kernels as users have them, each a Python of its own."""
    monkeypatch.setattr(local_provisioner, "launch_kernel", launch_kernel)


@pytest.fixture(scope="session")
def photo():
    """(3, 96, 128) float32 RGB in [0, 1] on the 8-bit grid: the eyes of scikit-image's cat."""
    with Image.open(find("photos-valid")[0]) as cat:
        pixels = np.array(cat.convert("RGB"))[64:160, 120:248]
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


@pytest.fixture
def largest_file():
    """``with largest_file(size)``, the kernel lets no file grow beyond so many bytes."""

    @contextmanager
    def limited(size):
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def pillow_bicubic():
    """(H, W) array, scale -> (ceil(H * scale), ceil(W * scale)) array, as MATLAB's imresize.

    Pillow's BICUBIC has the same kernel (a = -1/2) and the same antialiasing, but drops what lies
    beyond the border. So the image is mirrored outwards first, and the surroundings are cut off
    again. Pillow scales by the ratio of the sizes: they are padded until that is exactly `scale`.
    """

    def resize(array, scale):
        ratio = Fraction(scale).limit_denominator(1000)
        per = ratio.denominator
        before = per * math.ceil(20 / per)
        padding = [(before, before + -n % per) for n in array.shape]
        padded = np.pad(array, padding, mode="symmetric").astype(np.float32)
        h, w = (int(n * ratio) for n in padded.shape)
        whole = np.asarray(Image.fromarray(padded).resize((w, h), Image.Resampling.BICUBIC))
        start = int(before * ratio)
        rows, columns = (start + math.ceil(n * ratio) for n in array.shape)
        return whole[start:rows, start:columns]

    return resize
