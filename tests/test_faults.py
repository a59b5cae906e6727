"""srlab.training.faults: a device that holds only so many crops."""

import pytest
import torch

from srlab.data.bank import PatchBank
from srlab.models.critics import Discriminator
from srlab.models.generators import SRResNet
from srlab.training.config import AdversarialConfig, PretrainConfig
from srlab.training.engine import default_fabric
from srlab.training.faults import OutOfMemory
from srlab.training.game import adversarial
from srlab.training.pretrain import pretrain


class Tight(SRResNet):
    """A network on a device with room for ``room`` crops."""

    room = 5

    def forward(self, lr):
        if len(lr) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")
        return super().forward(lr)


def train(folder, batch_size, game=False, room=5):
    torch.manual_seed(0)
    generator = Tight(n_blocks=1, n_features=8)
    generator.room = room
    bank = PatchBank([torch.randint(256, (3, 40, 48), dtype=torch.uint8)])
    options = {"fabric": default_fabric("cpu"), "progress": False}
    common = {"steps": 4, "batch_size": batch_size, "patch_size": 4, "log_every": 2}
    common |= {"validate_every": 0}
    if game:
        critic = Discriminator(patch_size=16, n_features=8)
        settings = AdversarialConfig(**common)
        return adversarial(generator, critic, bank, settings, folder, **options)
    return pretrain(generator, bank, PretrainConfig(**common), folder, **options)


@pytest.mark.parametrize("game", [False, True])
def test_out_of_memory_names_a_batch_size_that_fits(tmp_path, game):
    with pytest.raises(OutOfMemory) as error:
        train(tmp_path / "run", 16, game)
    assert "out of memory with batch size 16, patch size 4" in str(error.value)
    assert "--batch-size 4 fits" in str(error.value)  # 8 does not, into a room for 5
    assert "\n" not in str(error.value)
    # And it does, in the same folder.
    assert train(tmp_path / "other", 4, game).step == 4


def test_when_nothing_fits(tmp_path):
    with pytest.raises(OutOfMemory, match="not even one crop fits: take a smaller --patch-size"):
        train(tmp_path, 2, room=0)


def test_another_runtime_error_is_left_alone(tmp_path):
    class Broken(SRResNet):
        def forward(self, lr):
            raise RuntimeError("gloo, but there is only one process")

    bank = PatchBank([torch.zeros(3, 16, 16, dtype=torch.uint8)])
    settings = PretrainConfig(steps=1, batch_size=1, patch_size=4)
    options = {"fabric": default_fabric("cpu"), "progress": False}
    with pytest.raises(RuntimeError, match="only one process"):
        pretrain(Broken(1, 8), bank, settings, tmp_path, **options)
