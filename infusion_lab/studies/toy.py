"""Study: toy worlds in the spirit of the paper's Figures 5 and 6, where the whole density can be seen.

A diffusion model of two classes in the plane. Its network attends, as cross-attention does: maps over 16 slots say
where, the class's values say what, and their sum is the guess of the clean point. The base model is customised on a
few samples of class A: every weight is trained, or one residual that is added to A's values while the maps stay the
base model's. As in the method itself, the base stream sees the concept's point at each step (``shared``) or follows
its own trajectory from the same noise (``own``).

- World "other class": does class B stay what it was?
- World "spread": class A is wide, the samples lie in one small place. Does A stay wide?
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import pairwise

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import gaussian_kde
from torch import Tensor, nn

from infusion_cli.pages import figure_png
from infusion_core.metrics.wasserstein import latent_wasserstein
from infusion_core.noise import seeded

from ..bench import Bench
from ..identity import digest_of_tensors
from ..store import Cell, Result, Row

STUDY = "toy"
SLOTS, WIDTH = 16, 96
SIGMAS = (0.03, 8.0)  # noise levels
BASE_STEPS, CUSTOM_STEPS, SAMPLES = 1500, 400, 1000
BATCH = 256
LIMIT = 4.0  # of the plots
BANDWIDTH = 0.15  # of the plotted densities, in units of the points' own spread
FULL, SHARED, OWN = "full fine-tuning", "value residual, shared", "value residual, own"


@dataclass(frozen=True)
class World:
    """Two classes as mixtures of round Gaussians in the plane, and the few samples of A's concept.

    Attributes:
        name: of the world.
        centres: per class the means (K, 2).
        scale: standard deviation of each Gaussian.
        samples: of the concept, (N, 2).
    """

    name: str
    centres: tuple[Tensor, Tensor]
    scale: float
    samples: Tensor

    @property
    def identity(self) -> str:
        """What it is: every number."""
        parts = {"a": self.centres[0], "b": self.centres[1], "samples": self.samples, "scale": torch.tensor(self.scale)}
        return digest_of_tensors(parts)

    def points(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Points (count, 2) of a class, at random."""
        centres = self.centres[label]
        chosen = centres[torch.randint(len(centres), (count,), generator=generator)]
        return chosen + self.scale * torch.randn(count, 2, generator=generator)


def worlds() -> tuple[World, World]:
    """Both worlds."""
    jitter = torch.randn(5, 2, generator=torch.Generator().manual_seed(3))
    line = torch.stack([torch.linspace(-2.5, 2.5, 9), torch.full((9,), -1.5)], 1)
    apart = World(
        "other class", (torch.tensor([[-1.5, 0.0]]), torch.tensor([[1.5, 0.0]])), 0.5,
        torch.tensor([-1.0, 1.8]) + 0.15 * jitter,
    )  # fmt: skip
    spread = World("spread", (line, line + torch.tensor([0.0, 4.5])), 0.25, torch.tensor([0.0, 0.0]) + 0.15 * jitter)
    return apart, spread


class Attending(nn.Module):
    """A denoiser of points: maps of slots, values of the class, and a residual on the values of class A."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Linear(3 + 8, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, SLOTS)
        )
        self.classes = nn.Embedding(2, 8)
        self.values = nn.Parameter(torch.randn(2, SLOTS, 2))
        self.spread = nn.Sequential(nn.Linear(3 + 8, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))
        self.residual = nn.Parameter(torch.zeros(2), requires_grad=False)

    def forward(self, points: Tensor, sigma: Tensor, label: Tensor, view: Tensor | None = None) -> Tensor:
        """The clean points guessed for noised ones, (N, 2).

        Args:
            points: noised, (N, 2).
            sigma, label: (N,).
            view: what the maps are made of, (N, 2); the points themselves by default.
        """
        view = points if view is None else view
        scaled = view / (sigma[:, None].square() + 1).sqrt()
        seen = torch.cat([scaled, sigma.log()[:, None], self.classes(label)], 1)
        maps = self.maps(seen).softmax(1)  # (N, slots)
        values = self.values[label] + self.residual * (label == 0)[:, None, None]
        attended = (maps[:, :, None] * values).sum(1)
        kept = torch.sigmoid(self.spread(seen))  # share of the point itself, for widths that no slot has
        clean: Tensor = attended + kept * (points - attended)
        return clean


def cells(bench: Bench) -> list[Cell]:
    """One cell per world; the lab's base model has no part in it."""
    amounts = BASE_STEPS, CUSTOM_STEPS, SAMPLES, bench.seed
    return [Cell(STUDY, "toy", w.name, (w.identity, amounts), partial(_measure, bench.seed, w)) for w in worlds()]


def train_base(world: World, seed: int) -> Attending:
    """The base model of a world."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Attending()
    generator = seeded(seed)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3)
    for _ in range(BASE_STEPS):
        clean = torch.cat([world.points(c, BATCH // 2, generator) for c in (0, 1)])
        _step(net, optimizer, clean, torch.arange(BATCH) // (BATCH // 2), generator)
    return net


def customise(net: Attending, world: World, whole: bool, seed: int) -> Attending:
    """A copy of the base model that has learned the samples as class A, with every weight or with the residual."""
    net = copy.deepcopy(net)
    trained = [p for p in net.parameters() if (p is not net.residual) == whole]
    for parameter in net.parameters():
        parameter.requires_grad_((parameter is not net.residual) == whole)
    generator = seeded(seed + 1)
    optimizer = torch.optim.Adam(trained, 1e-3 if whole else 2e-2)
    for _ in range(CUSTOM_STEPS):
        clean = world.samples[torch.randint(len(world.samples), (BATCH // 4,), generator=generator)]
        _step(net, optimizer, clean, torch.zeros(len(clean), dtype=torch.long), generator)
    return net


@torch.no_grad()
def sample(net: Attending, label: int, seed: int, base: Attending | None = None) -> Tensor:
    """Points (SAMPLES, 2) by deterministic sampling (DDIM in sigma).

    With a base model, maps come from that model's own trajectory from the same noise.
    """
    sigmas = [*torch.logspace(math.log10(SIGMAS[1]), math.log10(SIGMAS[0]), 40), torch.tensor(0.0)]
    x = view = torch.randn(SAMPLES, 2, generator=seeded(seed)) * SIGMAS[1]
    labels = torch.full((SAMPLES,), label)
    for now, then in pairwise(sigmas):
        sigma = now.expand(SAMPLES)
        clean = net(x, sigma, labels, view if base else None)
        x = clean + (x - clean) * then / now
        if base:
            clean = base(view, sigma, labels)
            view = clean + (view - clean) * then / now
    return x


def _step(
    net: Attending, optimizer: torch.optim.Optimizer, clean: Tensor, label: Tensor, generator: torch.Generator
) -> None:
    """One step of plain noise prediction."""
    low, high = (torch.tensor(s).log() for s in SIGMAS)
    sigma = (low + (high - low) * torch.rand(len(clean), generator=generator)).exp()
    noised = clean + sigma[:, None] * torch.randn(clean.shape, generator=generator)
    error = (net(noised, sigma, label) - clean).square().sum(1)
    loss = (error * (sigma.square() + 1) / sigma.square()).clamp(max=100).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _measure(seed: int, world: World) -> Result:
    base = train_base(world, seed)
    whole, residual = (customise(base, world, w, seed) for w in (True, False))
    before = [sample(base, label, seed) for label in (0, 1)]
    drawn = {
        FULL: [sample(whole, label, seed) for label in (0, 1)],
        SHARED: [sample(residual, label, seed) for label in (0, 1)],
        OWN: [sample(residual, label, seed, base) for label in (0, 1)],
    }
    rows = []
    for method, (a, b) in drawn.items():
        found = {
            "w2_class_b": latent_wasserstein(before[1], b, 0.0),
            "distance_to_samples": (a.mean(0) - world.samples.mean(0)).norm().item(),
            "spread_kept": (a.var(0).sum() / before[0].var(0).sum()).sqrt().item(),
        }
        rows += [Row(STUDY, method, world.name, CUSTOM_STEPS, "", seed, m, v) for m, v in found.items()]
    return Result(rows, {}, {f"World “{world.name}”": _plot(world, {"base model": before, **drawn})})


def _plot(world: World, drawn: dict[str, list[Tensor]]) -> Image.Image:
    """Densities of both classes side by side: base model, then each method."""
    figure = Figure(figsize=(3.4 * len(drawn), 3.6), layout="constrained")
    for axes, (name, (a, b)) in zip(figure.subplots(1, len(drawn)), drawn.items(), strict=True):
        for points, colours in ((a, "Oranges"), (b, "Blues")):
            _density(axes, points, colours)
        axes.scatter(*world.samples.T, s=40, marker="*", color="black", label="the few samples")
        axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", title=name, xticks=[], yticks=[])
    figure.axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    figure.supxlabel("class A orange, class B blue", fontsize=9)
    return Image.open(BytesIO(figure_png(figure)), formats=("PNG",)).convert("RGB")


def _density(axes: Axes, points: Tensor, colours: str) -> None:
    """Filled contours of a kernel estimate, at shares of its own peak."""
    ticks = np.linspace(-LIMIT, LIMIT, 120)
    grid = np.stack(np.meshgrid(ticks, ticks))  # (2, y, x)
    density = gaussian_kde(points.T.numpy(), BANDWIDTH)(grid.reshape(2, -1)).reshape(grid.shape[1:])
    levels = density.max() * np.array([0.05, 0.15, 0.3, 0.5, 0.75, 1.0])
    axes.contourf(ticks, ticks, density, levels, cmap=colours, alpha=0.8)
