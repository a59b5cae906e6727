"""srlab: the tested components under the super-resolution GAN course.

Import from the module that owns a thing (``from srlab.models.generators import SRResNet``); the
package itself imports nothing, so that ``import srlab`` costs nothing.
"""

__version__ = "0.1.0"
