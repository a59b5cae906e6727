"""srlab: the tested components under the super-resolution GAN course.

Import from the module that owns a thing (``from srlab.models.generators import SRResNet``); the
package itself imports nothing, so that ``import srlab`` costs nothing. One function is also at
hand here: ``srlab.upscale("photo.jpg")``, which is :func:`srlab.upscaling.upscale`.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "upscale":
        from srlab.upscaling import upscale

        return upscale
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
