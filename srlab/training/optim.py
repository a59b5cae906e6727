"""How weights move: optimizers, learning rate schedules, and the moving average of the weights."""

import math
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from srlab.training.config import AdversarialConfig, PretrainConfig

# Coefficients of the quintic iteration (K. Jordan 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon for the convolutions between hidden maps, Adam for everything else.

    Adam treats each number of a kernel by itself. Muon looks at the kernel as the matrix that it
    is, (out, in * k * k), and makes every singular value of its momentum equal before it takes the
    step: directions that rarely show in the gradient move as far as those that dominate it. The
    step is scaled by 0.2 sqrt(max(rows, columns)), so that Adam's learning rates fit it. Kernels
    of one shape are treated together; the iteration runs in bfloat16. What reads or writes pixels,
    biases and slopes are Adam's.

    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; scale from
    Liu et al. 2025, arXiv:2502.16982. For 2-D weights the same as ``torch.optim.Muon`` with
    ``adjust_lr_fn="match_rms_adamw"`` and without weight decay.

    Args:
        parameters: of a generator.
        lr: learning rate of both.
        betas: Adam's.
        momentum: Muon's (Nesterov's kind).
        fused: Adam's kernel for all weights at once.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        fused: bool | None = None,
    ):
        hidden: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for p in parameters:
            (hidden if p.ndim == 4 and min(p.shape[:2]) > 3 else others).append(p)
        groups = [{"params": hidden, "muon": True}, {"params": others, "muon": False}]
        defaults = {"lr": lr, "betas": betas, "eps": 1e-8, "momentum": momentum, "fused": fused}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if moving:
                (self._muon if group["muon"] else self._adam)(moving, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in parameters]
        gradients = [p.grad for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        alike: dict[torch.Size, list[int]] = {}
        for i, p in enumerate(parameters):
            alike.setdefault(p.shape, []).append(i)
        for shape, places in alike.items():
            matrices = orthogonalize(torch.stack([ahead[i].flatten(1) for i in places]))
            rate = group["lr"] * 0.2 * math.sqrt(max(matrices.shape[1:]))
            moves = [m.view(shape).to(ahead[0].dtype) for m in matrices]
            torch._foreach_add_([parameters[i] for i in places], moves, alpha=-rate)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                device = p.device if group["fused"] else "cpu"
                self.state[p]["step"] = torch.zeros((), device=device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in parameters]
        adam(
            parameters,
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrices with orthonormal rows (or columns), roughly: singular values near 1.

    Five steps of a Newton-Schulz iteration in bfloat16. It is tuned for speed: singular values end
    between about 0.7 and 1.2, which does as well as 1 in an optimizer.

    Args:
        matrices: (N, rows, columns).

    Returns:
        The same shape, bfloat16.
    """
    x = matrices.to(torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7).view(-1, 1, 1)
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def schedule(
    optimizer: torch.optim.Optimizer, config: PretrainConfig | AdversarialConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a half cosine down to zero or a constant rate."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def critic_groups(critic: nn.Module, config: AdversarialConfig) -> list[dict[str, Any]]:
    """Adam's parameter groups: what is pre-trained learns at its own rate."""
    trunk = list(getattr(critic, "trunk_parameters", list)())
    of_trunk = {id(p) for p in trunk}
    head = [p for p in critic.parameters() if id(p) not in of_trunk]
    learning = [
        ([p for p in part if p.requires_grad], rate)
        for part, rate in ((head, config.critic_lr), (trunk, config.trunk_lr))
    ]
    return [{"params": part, "lr": rate} for part, rate in learning if part]


class MovingAverage:
    """Exponential moving average of a network's weights, and of batch norm's statistics with them.

    (Statistics of this very moment do not fit weights that are an average over many.) The decay
    rises with the number of updates n, min(decay, (1 + n) / (10 + n)), so that a short run's
    average forgets its start. All tensors are updated by one call, and nothing waits for a GPU.

    Args:
        network: already where it is trained, in the memory layout that it is trained in.
        decay: 0 follows at once, 0.999 averages over about a thousand steps.

    Attributes:
        module: the averaged network, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.module = deepcopy(network).eval()
        if any(p.dtype.itemsize < 4 for p in network.parameters()):
            self.module.float()  # an average of half-precision weights is worth more bits
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take one step towards the network's present weights."""
        pairs = list(zip(_tensors(self.module), _tensors(network), strict=True))
        real = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        n = self.updates
        rate = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0  # the first is a copy
        averages = [mine for mine, _ in real]
        torch._foreach_lerp_(averages, [theirs.to(mine.dtype) for mine, theirs in real], rate)
        for mine, theirs in pairs:
            if not mine.is_floating_point():  # batch norm's counter of batches
                mine.copy_(theirs)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay an optimizer's state out in memory as its parameters are.

    A checkpoint keeps no layout, and steps over unlike ones are slower.
    """
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter).copy_(value)
