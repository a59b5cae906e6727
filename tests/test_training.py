"""Both training loops against plain PyTorch, and against what goes wrong in life."""

import csv
import math
import os
import signal
import threading
import time
from copy import deepcopy
from functools import cache
from itertools import count

import pytest
import torch
from processes import start
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from srlab import losses
from srlab.data.bank import PatchBank
from srlab.data.degradation import upsample
from srlab.errors import SrlabError
from srlab.files import InUse
from srlab.models import zoo
from srlab.models.blocks import FUSIONS
from srlab.models.critics import Discriminator, VGGCritic
from srlab.models.generators import WDRN, SRResNet
from srlab.models.vgg import Features
from srlab.training.config import AdversarialConfig, ConfigError, PretrainConfig
from srlab.training.engine import default_fabric
from srlab.training.game import adversarial
from srlab.training.monitor import TrainingDiverged, read_log
from srlab.training.optim import MovingAverage, Muon, match_layout, orthogonalize, schedule
from srlab.training.pretrain import pretrain
from srlab.training.run import CHECKPOINT
from srlab.training.state import CheckpointError, load_checkpoint, save_checkpoint

LOOPS = ["pretrain", "adversarial"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These networks are too small to share: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Noisy(SRResNet):
    """A generator that draws from torch's global random state, as one with dropout would."""

    def forward(self, lr):
        return super().forward(lr + 0.01 * torch.randn_like(lr))


@cache
def cpu(precision="32-true"):
    from lightning_fabric import Fabric

    return Fabric(accelerator="cpu", devices=1, precision=precision)


def make_bank():
    random = torch.Generator().manual_seed(3)
    shape = (3, 40, 48)
    images = [torch.randint(256, shape, generator=random, dtype=torch.uint8) for _ in range(2)]
    return PatchBank(images, seed=4)


def make_generator(kind=SRResNet, n_features=8):
    torch.manual_seed(1)
    return kind(n_blocks=1, n_features=n_features)


def make_critic():
    torch.manual_seed(2)
    return Discriminator(patch_size=32, n_features=8)


def config(name, **settings):
    kind = {"pretrain": PretrainConfig, "adversarial": AdversarialConfig}[name]
    small = {
        "steps": 12,
        "batch_size": 2,
        "patch_size": 8,
        "warmup_steps": 2,
        "schedule": "cosine",
        "log_every": 3,
        "validate_every": 6,
        "checkpoint_every": 5,
    }
    return kind(**small | settings)


def train(
    name, folder, *, generator=None, critic=None, bank=None, validate=None, fabric=None,
    on_step=None, **kw,
):  # fmt: skip
    """Run a loop on fresh objects, but for those given; ``kw`` are settings."""
    options = {"validate": validate, "fabric": fabric or cpu(), "progress": False}
    options["on_step"] = on_step
    generator, bank = generator or make_generator(), bank or make_bank()
    if name == "pretrain":
        return pretrain(generator, bank, config(name, **kw), folder, **options)
    critic = critic or make_critic()
    return adversarial(generator, critic, bank, config(name, **kw), folder, **options)


def at_batch(number, action):
    """A bank that does ``action(lr, hr)`` before it hands out its batch of that number."""
    bank, calls = make_bank(), count(1)
    draw = bank.batch

    def batch(*args):
        lr, hr = draw(*args)
        if next(calls) == number:
            action(lr, hr)
        return lr, hr

    bank.batch = batch
    return bank


def ctrl_c(*_):
    os.kill(os.getpid(), signal.SIGINT)


def psnr_like(generator):
    """A validation that depends on the weights (and on the random state, with Noisy)."""
    with torch.no_grad():
        return generator(torch.full((1, 3, 8, 8), 0.5)).mean().item()


def assert_same_run(folder, other):
    """Every tensor, number and row that two runs have left is the same."""
    a, b = (load_file(f / "checkpoint.safetensors") for f in (folder, other))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert load_checkpoint(folder / CHECKPOINT)[1] == load_checkpoint(other / CHECKPOINT)[1]
    assert (folder / "log.csv").read_bytes() == (other / "log.csv").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folders of runs that nobody disturbed, by the name of their loop."""
    folders = {name: tmp_path_factory.mktemp(name) for name in LOOPS}
    for name, folder in folders.items():
        train(name, folder, generator=make_generator(Noisy), validate=psnr_like)
    return folders


# What the loops compute. In 64-bit floats, where the order of a sum no longer matters: Adam blows
# the rounding errors of a vanishing gradient up to a whole step. (Fabric hands 32 bits from one
# network to the next, hence the tolerance: a thousandth of a step.)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def learning_rate(peak, step, steps, warmup):
    """The rate of the update number ``step``, counted from 1: warm-up, then half a cosine."""
    if step <= warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * (step - 1 - warmup) / (steps - warmup))) / 2


@pytest.mark.parametrize(("loss", "criterion"), [("l1", nn.L1Loss()), ("mse", nn.MSELoss())])
def test_pretrain_is_the_plain_pytorch_loop(tmp_path, loss, criterion):
    steps, decay = 5, 0.2
    network, bank = make_generator().double(), make_bank()
    averages = None
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.8, 0.99))
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = learning_rate(2e-3, step, steps, warmup=2)
        lr, hr = bank.batch(2, 8)
        optimizer.zero_grad()
        criterion(network(lr.double()), hr.double()).backward()
        optimizer.step()
        weights = [p.detach().clone() for p in network.parameters()]
        d = min(decay, step / (9 + step)) if averages else 0  # n = step - 1 updates before
        averages = [d * a + (1 - d) * w for a, w in zip(averages or weights, weights, strict=True)]

    generator = make_generator()
    result = train(
        "pretrain", tmp_path, generator=generator, fabric=cpu("64-true"),
        steps=steps, loss=loss, lr=2e-3, betas=(0.8, 0.99), ema_decay=decay,
    )  # fmt: skip
    assert_close(generator.state_dict(), network.state_dict(), **CLOSE)
    tolerance = {"rtol": 1.3e-6, "atol": 1e-5}
    assert_close(list(result.generator.parameters()), averages, **tolerance)


def test_adversarial_is_the_plain_pytorch_game(tmp_path):
    """No gradient can leak from one turn to the other here: autograd.grad writes into none."""
    weight, rate = 0.1, 1e-3
    g, c, bank = make_generator().double(), make_critic().double(), make_bank()
    g_optimizer, c_optimizer = (torch.optim.Adam(m.parameters(), rate) for m in (g, c))

    def update(network, optimizer, loss):
        gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    for _ in range(3):
        lr, hr = (t.double() for t in bank.batch(2, 8))
        sr, yes, no = g(lr), torch.ones(2, 1).double(), torch.zeros(2, 1).double()
        bce = F.binary_cross_entropy_with_logits
        update(c, c_optimizer, bce(c(hr), yes) + bce(c(sr.detach()), no))
        update(g, g_optimizer, F.mse_loss(sr, hr) + weight * bce(c(sr), yes))

    generator, critic = make_generator(), make_critic()
    train(
        "adversarial", tmp_path, generator=generator, critic=critic, fabric=cpu("64-true"),
        steps=3, warmup_steps=0, schedule="constant", generator_lr=rate, critic_lr=rate,
        adversarial_weight=weight,
    )  # fmt: skip
    assert_close(generator.state_dict(), g.state_dict(), **CLOSE)
    assert_close(critic.state_dict(), c.state_dict(), **CLOSE)
    for mine, theirs in ((generator, g), (critic, c)):
        gradients = ([p.grad for p in network.parameters()] for network in (mine, theirs))
        assert_close(*gradients, **CLOSE)
    assert not torch.equal(critic.features[0].weight, make_critic().features[0].weight)


def test_without_an_adversarial_weight_only_the_pixels_count(tmp_path):
    network, bank = make_generator().double(), make_bank()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(3):
        lr, hr = bank.batch(2, 8)
        optimizer.zero_grad()
        F.l1_loss(network(lr.double()), hr.double()).backward()
        optimizer.step()

    generator = make_generator()
    train(
        "adversarial", tmp_path, generator=generator, fabric=cpu("64-true"), steps=3,
        warmup_steps=0, schedule="constant", generator_lr=1e-3, content="l1",
        adversarial_weight=0.0,
    )  # fmt: skip
    assert_close(generator.state_dict(), network.state_dict(), **CLOSE)


def test_a_fresh_critic_guesses(tmp_path):
    train("adversarial", tmp_path, steps=1, log_every=1, validate_every=0)
    first = {name: values[0] for name, (_, values) in read_log(tmp_path / "log.csv").items()}
    assert first["critic_loss"] == pytest.approx(2 * math.log(2), abs=0.1)
    assert first["d_real"] == pytest.approx(0.5, abs=0.05)
    assert first["d_fake"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_schedule(kind):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = schedule(optimizer, PretrainConfig(steps=110, warmup_steps=10, schedule=kind))
    rates = []
    for _ in range(110):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.05)
    assert rates[9] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.5)
    if kind == "constant":
        assert rates[60] == rates[109] == 0.5
    else:
        assert rates[35] == pytest.approx(0.25 * (1 + math.sqrt(0.5)))  # a quarter of the way
        assert rates[60] == pytest.approx(0.25)
        assert 0 < rates[109] < 2e-4


def test_muon_is_torchs_for_matrices_and_adam_for_the_rest():
    torch.manual_seed(0)
    matrix, head = torch.randn(24, 40), torch.randn(8, 3, 3, 3)
    theirs = [nn.Parameter(matrix.clone()), nn.Parameter(head.clone())]
    kernel = matrix.view(24, 10, 2, 2).clone(memory_format=torch.channels_last)
    mine = [nn.Parameter(kernel), nn.Parameter(head.clone())]
    references = [
        torch.optim.Muon([theirs[0]], 1e-2, 0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam([theirs[1]], 1e-2, (0.8, 0.99)),
    ]
    optimizer = Muon(mine, 1e-2, (0.8, 0.99))
    for _ in range(4):
        gradients = torch.randn_like(matrix), torch.randn_like(head)
        for a, b, gradient in zip(mine, theirs, gradients, strict=True):
            a.grad, b.grad = gradient.view(a.shape), gradient.clone()
        for reference in references:
            reference.step()
        optimizer.step()
    # The iteration runs in bfloat16: a step of 0.01 is known to 0.4 %.
    assert_close(mine[0].flatten(1), theirs[0], rtol=0, atol=1e-3)
    assert_close(mine[1], theirs[1])


@pytest.mark.parametrize("shape", [(2, 16, 40), (3, 40, 16)])
def test_orthogonalize_makes_singular_values_equal(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices).float()
    assert torch.linalg.svdvals(result).sub(1).abs().max() < 0.35  # before: a factor of five
    # The same directions: in the matrix's own bases the result is nearly diagonal.
    inside = u.mT @ result @ vh.mT
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 0.1


def test_a_run_with_muon_goes_on_bit_for_bit(tmp_path):
    settings = {"optimizer": "muon", "steps": 8, "validate_every": 0}
    train("pretrain", tmp_path / "whole", **settings)
    stop = {"on_step": lambda step, _: step == 4}
    assert train("pretrain", tmp_path / "parts", **settings, **stop).step == 4
    train("pretrain", tmp_path / "parts", **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_validation_takes_a_small_share_of_a_long_run(tmp_path, monkeypatch):
    """A clock on which a step takes a second and a validation twenty."""
    now = [0.0]
    monkeypatch.setattr("srlab.training.run.time.perf_counter", lambda: now[0])
    seen = []

    def validate(_):
        now[0] += 20
        seen.append(now[0])
        return 30.0

    def on_step(step, _):
        now[0] += 1

    train(
        "pretrain", tmp_path, steps=400, log_every=1, validate_every=1, checkpoint_every=0,
        batch_size=1, patch_size=8, validate=validate, on_step=on_step,
    )  # fmt: skip
    assert len(seen) <= 1 + (30 + 0.02 * now[0]) / 20 + 1  # the last one is always made
    assert len(seen) >= 3
    steps, values = read_log(tmp_path / "log.csv")["val_psnr"]
    assert steps[-1] == 400
    assert len(values) == len(seen)


def test_the_average_follows_the_weights_and_the_statistics():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = MovingAverage(network, 0.23)
    weight_average = mean_average = 0.0
    for n, weight in enumerate([3.0, 5.0, -4.0, 2.0]):
        nn.init.constant_(network[0].weight, weight)
        network(torch.randn(4, 1))
        average.update(network)
        d = [0, 2 / 11, 0.23, 0.23][n]  # the first is a copy; then (1 + n) / (10 + n), if smaller
        weight_average = d * weight_average + (1 - d) * weight
        mean_average = d * mean_average + (1 - d) * network[1].running_mean.item()
        assert average.module[0].weight.item() == pytest.approx(weight_average)
        assert average.module[1].running_mean.item() == pytest.approx(mean_average)
        assert average.module[1].num_batches_tracked == n + 1
    assert not average.module.training


def test_what_a_run_returns_can_be_trained_further(tmp_path):
    """A game starts from it; what the user froze stays frozen."""
    generator = make_generator()
    generator.head[0].weight.requires_grad_(False)
    result = train("pretrain", tmp_path / "a", generator=generator, steps=2)
    frozen = {n for n, p in result.generator.named_parameters() if not p.requires_grad}
    assert frozen == {"head.0.weight"}
    before = result.generator.tail.weight.detach().clone()
    train("adversarial", tmp_path / "b", generator=result.generator, steps=2)
    assert not torch.equal(result.generator.tail.weight, before)


def test_the_average_never_asks_a_device_for_a_value():
    """Tensors on the meta device have none: whoever would wait for one fails here."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to("meta")
    average = MovingAverage(network, 0.9)
    for _ in range(3):
        average.update(network)
    assert average.updates == 3
    assert average.module[0].weight.device.type == "meta"


SMALL = {
    "srresnet": lambda: SRResNet(n_blocks=1, n_features=16),
    **{
        fusion: lambda fusion=fusion: WDRN(1, 2, n_features=16, growth=8, fusion=fusion)
        for fusion in FUSIONS
    },
}


@pytest.mark.parametrize("name", SMALL)
def test_every_generator_learns_one_crop_by_heart(tmp_path, name):
    from skimage.data import chelsea

    crop = torch.from_numpy(chelsea()[100:132, 120:152]).permute(2, 0, 1)
    bank = PatchBank([crop])
    lr, hr = bank.batch(1, patch_size=8, augment=False)
    bank.batch = lambda *_: (lr, hr)
    torch.manual_seed(1)
    settings = PretrainConfig(
        steps=200, batch_size=1, patch_size=8, lr=5e-3, ema_decay=0.99, validate_every=0
    )
    result = pretrain(SMALL[name](), bank, settings, tmp_path, fabric=cpu(), progress=False)
    with torch.no_grad():
        error = F.mse_loss(result.generator(lr), hr)
    assert -10 * math.log10(error) > 45  # bicubic interpolation: 29.2 dB


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains_and_keeps_a_full_average(tmp_path, name, precision):
    result = train(name, tmp_path, fabric=cpu(precision), steps=4)
    assert {p.dtype for p in result.generator.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in result.generator.parameters())
    assert not torch.equal(result.generator.tail.weight, make_generator().tail.weight)


def test_validation_sees_the_average_in_evaluation_mode(tmp_path):
    seen = []

    def validate(network):
        seen.append((network.training, deepcopy(network.state_dict())))
        network.train()  # as a careless evaluation might leave it
        return 20.0 + len(seen)

    generator = make_generator()
    result = train("pretrain", tmp_path, generator=generator, validate=validate, steps=8)
    assert [training for training, _ in seen] == [False, False]
    assert read_log(tmp_path / "log.csv")["val_psnr"] == ([6, 8], [21.0, 22.0])
    assert_close(seen[-1][1], result.generator.state_dict())
    assert not torch.equal(result.generator.tail.weight, generator.tail.weight)
    assert not result.generator.training
    # The folder gives the same network to whoever comes later.
    assert_close(zoo.load(tmp_path).state_dict(), result.generator.state_dict())


# What survives


@pytest.mark.parametrize("name", LOOPS)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, capsys, name, unbroken):
    handler = signal.getsignal(signal.SIGINT)
    options = {"generator": make_generator(Noisy), "validate": psnr_like}
    result = train(name, tmp_path, bank=at_batch(7, ctrl_c), **options)
    assert result.step == 7  # of 12: neither a row nor a checkpoint was due
    told = capsys.readouterr().out
    assert "Stopped after step 7 of 12" in told
    assert str(tmp_path / "checkpoint.safetensors") in told
    assert "again to go on" in told
    assert signal.getsignal(signal.SIGINT) is handler

    options = {"generator": make_generator(Noisy), "validate": psnr_like}
    result = train(name, tmp_path, **options)
    assert result.step == 12
    assert_same_run(tmp_path, unbroken[name])


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, unbroken):
    """Until it is killed, nobody else may train in its folder, and who tries spoils nothing."""
    training = start(wait_at_step_8, tmp_path / "run", log=tmp_path / "said")
    while not (said := tmp_path / "said").exists() or "step 8" not in said.read_text():
        assert training.is_alive(), said.read_text()
        time.sleep(0.02)
    with pytest.raises(InUse, match=f"process {training.pid} is busy there with a training"):
        train("pretrain", tmp_path / "run")
    training.kill()
    training.join()
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT)[1]["step"] == 5
    assert read_log(tmp_path / "run" / "log.csv")["loss"][0] == [3, 6]  # one row too many

    train("pretrain", tmp_path / "run", generator=make_generator(Noisy), validate=psnr_like)
    assert_same_run(tmp_path / "run", unbroken["pretrain"])


def wait_at_step_8(folder):
    """What the test above runs in a process of its own."""

    def wait(*_):
        print("step 8", flush=True)
        time.sleep(600)

    generator = make_generator(Noisy)
    train("pretrain", folder, generator=generator, bank=at_batch(8, wait), validate=psnr_like)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_a_signal_stops_is_saved_and_says_so(tmp_path, number):
    handler = signal.getsignal(number)
    bank = at_batch(7, lambda *_: os.kill(os.getpid(), number))
    result = train("pretrain", tmp_path, bank=bank)
    assert (result.step, result.signal) == (7, number)
    assert signal.getsignal(number) is handler
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT, "log.csv"]
    assert train("pretrain", tmp_path).signal == 0


def test_a_run_goes_on_with_its_own_pictures_and_seed_only(tmp_path):
    train("pretrain", tmp_path, steps=3)
    same, other = make_bank(), make_bank()
    renamed, smaller = make_bank(), PatchBank([torch.zeros(3, 40, 48, dtype=torch.uint8)], seed=4)
    other.generator.manual_seed(5)
    renamed.names = ["image 0", "image 2"]
    for bank, why in (
        (other, "seed = 4, now 5"),
        (renamed, r"data = '2 pictures, image 0 to image 1 .*now '2 pictures, image 0 to image 2"),
        (smaller, "data = '2 pictures, .*now '1 pictures"),
    ):
        with pytest.raises(CheckpointError, match=f"other settings .*{why}"):
            train("pretrain", tmp_path, bank=bank)
    same.names = [f"/moved/{name}" for name in same.names]
    assert train("pretrain", tmp_path, bank=same).step == 12


def test_a_checkpoint_that_does_not_tell_its_data_goes_on(tmp_path):
    train("pretrain", tmp_path, steps=3)
    state, info = load_checkpoint(tmp_path / CHECKPOINT)
    del info["config"]["data"], info["config"]["seed"]
    save_checkpoint(tmp_path / CHECKPOINT, state, info)
    assert train("pretrain", tmp_path).step == 12


@pytest.mark.parametrize("name", LOOPS)
def test_the_second_ctrl_c_interrupts_at_once(tmp_path, name):
    def press_twice(*_):
        ctrl_c()
        ctrl_c()

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(name, tmp_path, bank=at_batch(7, press_twice))
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 5


def test_a_run_in_a_thread_works(tmp_path):
    results = []
    work = threading.Thread(target=lambda: results.append(train("pretrain", tmp_path, steps=2)))
    work.start()
    work.join()
    assert results[0].step == 2


@pytest.mark.parametrize("step", [8, 10])  # before the row of step 9, and at a checkpoint
@pytest.mark.parametrize(("name", "metric"), [("pretrain", "loss"), ("adversarial", "critic_loss")])
def test_nan_is_reported_and_the_last_good_checkpoint_kept(tmp_path, name, metric, step):
    bank = at_batch(step, lambda lr, hr: lr.fill_(math.nan))
    message = rf"^{metric} became NaN or infinite at step {step}\b"
    with pytest.raises(TrainingDiverged, match=message):
        train(name, tmp_path, bank=bank)
    state, info = load_checkpoint(tmp_path / CHECKPOINT)
    assert info["step"] == 5
    assert all(t.isfinite().all() for t in load_file(tmp_path / CHECKPOINT).values())
    assert_close(zoo.load(tmp_path).tail.weight, state["average"]["module"]["tail.weight"])


def test_weights_spoilt_by_the_very_step_of_a_checkpoint_are_not_saved(tmp_path):
    """The loss of that step is still finite: only its gradient is not."""
    generator, calls = make_generator(), count(1)
    generator.tail.bias.register_hook(lambda g: g * math.nan if next(calls) == 10 else g)
    with pytest.raises(TrainingDiverged, match=r"weight of the generator .* at step 10\b"):
        train("pretrain", tmp_path, generator=generator)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 5


def test_an_error_in_the_generators_turn_leaves_the_critic_trainable(tmp_path, monkeypatch):
    critic = make_critic()
    critic.features[0].weight.requires_grad_(False)  # frozen by the user: stays so
    before = {name: p.requires_grad for name, p in critic.named_parameters()}

    def out_of_memory(fake):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(losses, "bce_generator", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            train("adversarial", tmp_path, critic=critic)
    assert {name: p.requires_grad for name, p in critic.named_parameters()} == before

    train("adversarial", tmp_path, critic=critic, steps=2)
    assert {name: p.requires_grad for name, p in critic.named_parameters()} == before
    assert torch.equal(critic.features[0].weight, make_critic().features[0].weight)
    assert not torch.equal(critic.features[2].weight, make_critic().features[2].weight)


def test_a_finished_run_returns_at_once(tmp_path, unbroken):
    bank = at_batch(1, lambda *_: pytest.fail("it trains"))
    log = (unbroken["pretrain"] / "log.csv").read_bytes()
    result = train("pretrain", unbroken["pretrain"], bank=bank)
    assert (result.step, result.patches_per_second) == (12, 0.0)
    average = load_checkpoint(result.folder / CHECKPOINT)[0]["average"]
    assert torch.equal(result.generator.tail.weight, average["module"]["tail.weight"])
    assert (unbroken["pretrain"] / "log.csv").read_bytes() == log


def test_more_steps_go_on_where_the_run_ended(tmp_path):
    same = {"validate_every": 0, "schedule": "constant"}
    train("pretrain", tmp_path / "a", steps=6, **same)
    assert train("pretrain", tmp_path / "a", steps=12, **same).step == 12
    train("pretrain", tmp_path / "b", steps=12, **same)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_restored_optimizer_has_the_layout_of_its_weights():
    """Adam's step over unlike layouts took 1.7 times as long (on a CPU)."""
    network = make_generator().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 3, 8, 8)).mean().backward()
    optimizer.step()
    moments = [optimizer.state[p]["exp_avg"].clone() for p in network.parameters()]
    for slots in optimizer.state.values():
        slots["exp_avg"] = slots["exp_avg"].contiguous()  # as a checkpoint keeps it
    match_layout(optimizer)
    for p, moment in zip(network.parameters(), moments, strict=True):
        assert optimizer.state[p]["exp_avg"].stride() == p.stride()
        assert torch.equal(optimizer.state[p]["exp_avg"], moment)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 5e-4}, r"lr = 0\.001, now 0\.0005"),
        ({"betas": (0.5, 0.9)}, r"betas = \[0\.9, 0\.999\], now \(0\.5, 0\.9\)"),
        ({"batch_size": 3}, "batch_size = 2, now 3"),
        ({"steps": 1}, "2 steps done, now 1"),
    ],
)
def test_other_settings_in_the_same_folder(tmp_path, change, message):
    train("pretrain", tmp_path, steps=2)
    saved = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(CheckpointError, match=message):
        train("pretrain", tmp_path, **{"steps": 2} | change)
    with pytest.raises(CheckpointError, match="kind = 'PretrainConfig', now 'AdversarialConfig'"):
        train("adversarial", tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == saved


def test_another_architecture_in_the_same_folder(tmp_path):
    train("pretrain", tmp_path, steps=2)
    with pytest.raises(SrlabError, match=r"checkpoint\.safetensors was made by another archit"):
        train("pretrain", tmp_path, steps=2, generator=make_generator(n_features=4))


@pytest.mark.parametrize("name", LOOPS)
def test_a_folder_that_cannot_be_written_to_is_found_before_the_first_step(tmp_path, name):
    (tmp_path / "file").write_text("not a folder")
    bank = at_batch(1, lambda *_: pytest.fail("it trains"))
    with pytest.raises(CheckpointError, match=r"cannot write .*file") as error:
        train(name, tmp_path / "file" / "run", bank=bank)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_stops_the_run_and_stays_as_it_is(tmp_path):
    (tmp_path / CHECKPOINT).write_text("damaged")
    with pytest.raises(CheckpointError, match="damaged or come from another program"):
        train("pretrain", tmp_path)
    assert (tmp_path / CHECKPOINT).read_text() == "damaged"


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", LOOPS)
def test_a_run_stopped_on_a_gpu_goes_on_there_and_on_a_cpu(tmp_path, name):
    gpu = default_fabric()
    assert train(name, tmp_path, bank=at_batch(4, ctrl_c), fabric=gpu).step == 4
    assert train(name, tmp_path, bank=at_batch(4, ctrl_c), fabric=gpu).step == 8  # bank: on the CPU
    assert train(name, tmp_path).step == 12
    with open(tmp_path / "log.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6", "9", "12"]


# --- The other games ------------------------------------------------------------------------------


def plain_critic(spectral=False):
    """Without batch norm; any module that gives scores will do."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 4, 3, 2), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3, 2), nn.Flatten()]
    if spectral:
        spectral_norm = torch.nn.utils.parametrizations.spectral_norm
        layers = [spectral_norm(m) if isinstance(m, nn.Conv2d) else m for m in layers]
    return nn.Sequential(*layers)


GAMES = {
    "bce": {},
    "relativistic": {"adversarial": "relativistic"},
    "clip": {"adversarial": "wasserstein", "lipschitz": "clip"},
    "gradient penalty": {"adversarial": "wasserstein", "lipschitz": "gradient-penalty"},
    "spectral": {"adversarial": "wasserstein", "lipschitz": "spectral"},
}


@pytest.mark.parametrize("game", ["relativistic", "gradient penalty", "clip"])
def test_other_games_are_plain_pytorch_too(tmp_path, game):
    """Two critic steps to one of the generator, written out by the papers."""
    weight, rate = 0.1, 1e-3
    g, c, bank = make_generator().double(), plain_critic().double(), make_bank()
    g_optimizer = torch.optim.Adam(g.parameters(), rate)
    c_optimizer = torch.optim.Adam(c.parameters(), 2 * rate, betas=(0.0, 0.9))
    bce = F.binary_cross_entropy_with_logits

    def relativistic(a, b):
        one = torch.ones_like(a)
        return bce(a - b.mean(), one) + bce(b - a.mean(), 0 * one)

    torch.manual_seed(9)
    for _ in range(2):
        for _ in range(2):
            lr, hr = (t.double() for t in bank.batch(2, 8))
            sr = g(lr)
            real, fake = c(hr), c(sr.detach())
            wasserstein = fake.mean() - real.mean()
            loss = relativistic(real, fake) if game == "relativistic" else wasserstein
            if game == "gradient penalty":
                mix = torch.rand(2, 1, 1, 1).double()
                x = (mix * hr + (1 - mix) * sr.detach()).requires_grad_()
                (slope,) = torch.autograd.grad(c(x).mean(1).sum(), x, create_graph=True)
                loss = loss + 10 * ((slope.square().sum((1, 2, 3)).sqrt() - 1) ** 2).mean()
            c_optimizer.zero_grad()
            loss.backward()
            c_optimizer.step()
            if game == "clip":
                for p in c.parameters():
                    p.data.clamp_(-0.05, 0.05)
        loss = relativistic(c(sr), c(hr)) if game == "relativistic" else -c(sr).mean()
        g_optimizer.zero_grad()
        (F.l1_loss(sr, hr) + weight * loss).backward()
        g_optimizer.step()

    generator, critic = make_generator(), plain_critic()
    # The penalty draws where it is measured in the images' own precision.
    draw = torch.rand
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *s, **k: draw(*s, **k | {"dtype": None}).double())
        torch.manual_seed(9)
        train(
            "adversarial", tmp_path, generator=generator, critic=critic, fabric=cpu("64-true"),
            steps=2, warmup_steps=0, schedule="constant", content="l1", critic_steps=2,
            generator_lr=rate, critic_lr=2 * rate, critic_betas=(0.0, 0.9), clip_value=0.05,
            adversarial_weight=weight, validate_every=0, log_every=2, **GAMES[game],
        )  # fmt: skip
    assert_close(generator.state_dict(), g.state_dict(), **CLOSE)
    # The last bias shifts all scores alike, to which these losses are blind: Adam drives it by
    # rounding errors.
    mine, theirs = critic.state_dict(), c.state_dict()
    del mine["2.bias"], theirs["2.bias"]
    assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("game", GAMES)
def test_every_game_logs_what_it_measures_and_resumes(tmp_path, game):
    spectral = game == "spectral"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = GAMES[game] | {"critic_steps": 2}
    train("adversarial", whole, critic=plain_critic(spectral), **settings)
    train(
        "adversarial", broken, critic=plain_critic(spectral), bank=at_batch(9, ctrl_c), **settings
    )
    train("adversarial", broken, critic=plain_critic(spectral), **settings)
    assert_same_run(whole, broken)
    log = read_log(whole / "log.csv")
    common = {"critic_loss", "real", "fake", "gap", "content", "adversarial"}
    extra = {"bce": {"d_real", "d_fake"}, "gradient penalty": {"penalty", "gradient_norm"}}
    wasserstein = {"gradient_norm"} if game in ("clip", "spectral") else set()
    assert log.keys() == common | extra.get(game, wasserstein)
    for real, fake, gap in zip(*(log[n][1] for n in ("real", "fake", "gap")), strict=True):
        assert gap == pytest.approx(real - fake, abs=1e-5)


@pytest.mark.parametrize("eyes", ["plain", "vgg"])
@pytest.mark.parametrize("game", GAMES)
def test_every_game_stays_finite_with_every_critic(tmp_path, game, eyes):
    """100 steps at a very high learning rate; the loop itself raises at the first NaN."""
    spectral = game == "spectral"
    torch.manual_seed(2)
    if eyes == "plain":
        critic = Discriminator(32, n_features=4, norm="none", spectral=spectral)
    else:
        critic = VGGCritic(
            Features(["relu2_2"], width=1 / 16),
            finetune=True, pixel_branch=True, patch=True, n_features=8, spectral=spectral,
        )  # fmt: skip
    settings = {"steps": 100, "generator_lr": 2e-3, "critic_lr": 2e-3, "validate_every": 0}
    settings |= {"checkpoint_every": 0, "log_every": 50}
    result = train("adversarial", tmp_path, critic=critic, **settings | GAMES[game])
    assert result.step == 100
    log = read_log(tmp_path / "log.csv")
    assert all(math.isfinite(v) for _, values in log.values() for v in values)
    assert all(p.isfinite().all() for p in result.generator.parameters())


def test_clipped_weights_stay_in_their_box(tmp_path):
    critic = plain_critic()
    train("adversarial", tmp_path, critic=critic, clip_value=0.02, critic_lr=0.1, **GAMES["clip"])
    assert max(p.abs().max().item() for p in critic.parameters()) == pytest.approx(0.02)


def test_the_critic_is_trained_until_its_gap_suffices(tmp_path):
    """A gap that any critic has already: one turn. One that none will reach: all turns."""
    for gap, turns in ((-1e9, 1), (1e9, 3)):
        folder = tmp_path / str(turns)
        bank = make_bank()
        draw, drawn = bank.batch, []
        bank.batch = lambda *a, draw=draw, drawn=drawn: drawn.append(a) or draw(*a)
        train("adversarial", folder, bank=bank, critic_gap=gap, critic_steps=3)
        assert set(read_log(folder / "log.csv")["turns"][1]) == {turns}
        assert len(drawn) == 12 * turns


def test_what_is_pre_trained_in_the_critic_learns_at_its_own_rate(tmp_path):
    """By Adam's first step, which moves every weight by its learning rate."""

    class OnTrunk(nn.Sequential):
        def trunk_parameters(self):
            return self[0].parameters()

    critic = OnTrunk(*plain_critic())
    critic[2].bias.requires_grad_(False)
    before = deepcopy(critic.state_dict())
    settings = {"warmup_steps": 0, "critic_lr": 1e-2, "trunk_lr": 1e-4, "validate_every": 0}
    train("adversarial", tmp_path, critic=critic, steps=1, log_every=1, **settings)
    step = {n: (p - before[n]).abs().max().item() for n, p in critic.named_parameters()}
    assert step["0.weight"] == pytest.approx(1e-4, rel=0.01)
    assert step["2.weight"] == pytest.approx(1e-2, rel=0.01)
    assert step["2.bias"] == 0


def test_the_perceptual_loss_has_its_weight(tmp_path):
    """A perceptual loss that is the pixel loss in disguise: the sum of both weights counts."""

    class Pixels(nn.Module):
        def forward(self, sr, hr):
            return F.l1_loss(sr, hr)

    results = []
    for weights in ({"content_weight": 3.0}, {"content_weight": 1.0, "perceptual_weight": 2.0}):
        generator = make_generator()
        perceptual = Pixels() if "perceptual_weight" in weights else None
        folder = tmp_path / str(len(results))
        adversarial(
            generator, make_critic(), make_bank(), config("adversarial", content="l1", **weights),
            folder, perceptual=perceptual, fabric=cpu("64-true"), progress=False,
        )  # fmt: skip
        results.append(generator.state_dict())
        assert ("perceptual" in read_log(folder / "log.csv")) == (perceptual is not None)
    assert_close(*results, **CLOSE)


def test_a_generator_that_stamps_a_grid_unlearns_it_if_that_has_a_weight(tmp_path):
    class Stamp(nn.Module):
        scale = 4

        def __init__(self):
            super().__init__()
            self.options = {}
            self.block = nn.Parameter(0.3 * (-1.0) ** torch.arange(16.0).view(4, 4))

        def forward(self, lr):
            return upsample(lr) + self.block.repeat(1, 1, *lr.shape[-2:])

    for weight in (0.0, 1.0):
        generator = Stamp()
        before = generator.block.detach().clone()
        adversarial(
            generator, make_critic(), make_bank(),
            config("adversarial", steps=60, generator_lr=0.02, content_weight=0.0,
                   adversarial_weight=0.0, grid_weight=weight, log_every=60, validate_every=0),
            tmp_path / str(weight), fabric=cpu(), progress=False,
        )  # fmt: skip
        size = generator.block.abs().mean() / before.abs().mean()
        assert size < 0.2 if weight else size == 1
        assert ("grid" in read_log(tmp_path / str(weight) / "log.csv")) == bool(weight)


def test_long_gradients_are_cut(tmp_path):
    generator = make_generator()
    train("adversarial", tmp_path, generator=generator, max_grad_norm=1e-4, content_weight=100.0)
    norms = torch.stack([p.grad.norm() for p in generator.parameters()])
    assert norms.norm().item() == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "critic", "message"),
    [
        (GAMES["gradient penalty"], make_critic, "Discriminator holds batch norm, which makes one"),
        (GAMES["clip"], make_critic, "no slope at one picture"),
        (GAMES["spectral"], plain_critic, "build Sequential with spectral=True"),
        ({"perceptual_weight": 1.0}, make_critic, "pass adversarial.*perceptual="),
        (
            GAMES["gradient penalty"],
            lambda: plain_critic().bfloat16(),
            "needs 32-bit weights: use precision bf16-mixed",
        ),
    ],
)
def test_games_that_cannot_work_are_refused_with_the_reason(tmp_path, settings, critic, message):
    with pytest.raises(ConfigError, match=message):
        train("adversarial", tmp_path / "run", critic=critic(), **settings)
    assert not (tmp_path / "run").exists()
