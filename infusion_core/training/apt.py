"""APT (arXiv 2507.02687): a LoRA that measures its own overfitting against the frozen model, and is restrained by it.

``(1 - gamma_t) L_DM + lambda_dist (L_mu + L_sigma) + lambda_attn L_attn``, on photos that are shown in other places
the more often, the more they are known by heart. With every switch off this is `LoraObjective`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from ..attention import Plan, QueryKey
from ..denoiser import Denoiser
from ..dreamblend import Distance, MapDistance
from ..errors import InfusionError
from ..lora import LoraSet
from ..readers import FeatureMoments, Recorder
from ..sites import under
from .lora import Batch, LoraObjective, LoraSettings
from .overfitting import RESTRAINED, UNRESTRAINED, Indicator, Restraint
from .shown import Shown


@dataclass(frozen=True, kw_only=True)
class AptSettings(LoraSettings):
    """How to train a LoRA, and how it is restrained.

    Attributes:
        restraint: by the indicator of overfitting.
        stabilisation: weight lambda_dist of what self-attention's features have moved; 0 for none.
        stabilised: names of blocks or sites, or their beginnings, whose features are held; empty for all.
        alignment: weight lambda_attn of how far cross-attention's maps have moved; 0 for none.
        distance: of two maps.
    """

    restraint: Restraint = RESTRAINED
    stabilisation: float = 0.1
    stabilised: tuple[str, ...] = ()
    alignment: float = 0.1
    distance: Distance = "absolute"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stabilisation", "alignment"):
            if not 0 <= getattr(self, name) < 1e9:
                raise InfusionError(f"{name} must be 0 or a positive number, got {getattr(self, name):g}")

    @property
    def compares(self) -> bool:
        """Whether the frozen model is asked."""
        return self.restraint.measures or self.stabilisation > 0 or self.alignment > 0

    @property
    def unrestrained(self) -> AptSettings:
        """The same with every switch off: an ordinary LoRA."""
        return replace(self, restraint=UNRESTRAINED, stabilisation=0.0, alignment=0.0)


class AptObjective(LoraObjective):
    """A restrained LoRA; arguments as of `LoraObjective`.

    Attributes:
        indicator: how overfitted the run is; moves with every batch.

    Raises:
        InfusionError: `stabilised` names something that the model does not have.
    """

    settings: AptSettings

    def __init__(
        self, denoiser: Denoiser, lora: LoraSet, shown: Shown, settings: AptSettings, prior: Shown | None = None
    ) -> None:
        super().__init__(denoiser, lora, shown, settings, prior)
        self.settings = settings
        self.indicator = Indicator(settings.restraint, len(denoiser.sigmas))
        self._held = frozenset(site.name for site in under(denoiser.base.sites, settings.stabilised))

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """``denoising``, ``prior`` where there are pictures of the class, and what restrains."""
        if not self.settings.compares:
            return super().losses(generator)
        batch = self._drawn(self.shown, generator)
        weights = self.indicator.weights(batch.times)
        reference, frozen = self._frozen(batch)
        errors, found = self._compared(batch, frozen)
        self.indicator.update(batch.times, reference, errors)
        denoising = self._weighted(errors, batch) * weights.to(errors)
        return {"denoising": denoising, **self._prior_loss(generator), **found}

    def extra_state(self) -> dict[str, Tensor]:
        """The indicator's."""
        return self.indicator.state() if self.settings.compares else {}

    @property
    def measured(self) -> Indicator | None:
        """The indicator, where the base model is asked about every batch."""
        return self.indicator if self.settings.compares else None

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """Take it back."""
        if self.settings.compares:
            self.indicator.restore(extra)

    def _variants(self, times: Tensor, count: int, generator: Generator) -> Tensor:
        """Of a photo that is known by heart, a variant."""
        return self.indicator.variants(times, count, generator)

    @torch.no_grad()
    def _frozen(self, batch: Batch) -> tuple[Tensor, _Watched]:
        """The frozen model's errors (B,) on a batch, and what was watched meanwhile."""
        watched = _Watched()
        with self.lora.off():
            plan = Plan(
                readers=[Recorder(watched.maps)] if self.settings.alignment else [],
                features=self._watching(watched.moments),
            )
            return self._errors(self.shown, batch, plan), watched

    def _compared(self, batch: Batch, frozen: _Watched) -> tuple[Tensor, dict[str, Tensor]]:
        """The trained model's errors (B,), and its weighted distances from the frozen one by name, (B,) each."""
        settings, moments = self.settings, dict[str, Tensor]()
        maps = MapDistance(frozen.maps, settings.distance)
        plan = Plan(readers=[maps] if settings.alignment else [], features=self._watching(moments))
        errors, found = self._errors(self.shown, batch, plan), dict[str, Tensor]()
        if settings.stabilisation:
            apart = [(moments[name] - frozen.moments[name]).square().sum(1).mean(1) for name in moments]
            found["stabilisation"] = settings.stabilisation * torch.stack(apart).mean(0)
        if settings.alignment:
            assert maps.total is not None
            found["alignment"] = settings.alignment * maps.total * (frozen.tokens / len(frozen.maps))
        return errors, found

    def _watching(self, moments: dict[str, Tensor]) -> list[FeatureMoments]:
        return [FeatureMoments(moments, self._held)] if self.settings.stabilisation else []


@dataclass
class _Watched:
    """What the frozen model's pass showed.

    Attributes:
        maps: queries and keys by site.
        moments: of self-attention's features by site.
    """

    maps: dict[str, QueryKey] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Length of the context."""
        _, key = next(iter(self.maps.values()))
        return key.shape[2]
