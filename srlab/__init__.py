"""srlab: the tested components under the super-resolution GAN course.

Import from the module that owns a thing (``from srlab.models.generators import SRResNet``); the
package itself imports nothing, so that ``import srlab`` costs nothing. Two functions are also at
hand here: ``srlab.load("srresnet")``, which is :func:`srlab.models.zoo.load`, and
``srlab.upscale("photo.jpg")``, which is :func:`srlab.pictures.upscaling.upscale`.
"""

import os
from importlib import import_module
from typing import Any

# Before torch is imported: a thread that waits for another one spins briefly and then sleeps. GNU
# OpenMP's own default spins for milliseconds, which on a busy machine keeps the awaited thread off
# its core (notebooks/results/bench/threads.csv).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

__version__ = "0.1.0"

_AT_HAND = {"load": "srlab.models.zoo", "upscale": "srlab.pictures.upscaling"}


def __getattr__(name: str) -> Any:
    if name in _AT_HAND:
        return getattr(import_module(_AT_HAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
