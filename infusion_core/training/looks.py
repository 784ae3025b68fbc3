"""What residuals are trained on in one pass: noised photos of one concept, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from ..concepts import LoadedConcept
from ..denoiser import Denoiser, EncodedPrompt, stack
from ..injection import Injection, inject
from ..noise import bin_of, share_done
from ..schedule import Window
from ..streams import both_streams, by_maps, concept_stream
from .objective import Noised


@dataclass(frozen=True)
class Look:
    """Noised photos of one concept.

    Attributes:
        concept: its residual; gradients flow into it.
        noised: latents at noise levels, B.
        times: their training timesteps, (B,).
        prompts: what is said of each, with the spans of the word.
        masks: weight of the error over each, (B, 1, H, W); None for evenly.
    """

    concept: LoadedConcept
    noised: Noised
    times: Tensor
    prompts: Sequence[EncodedPrompt]
    masks: Tensor | None

    def injection(self, rows: Sequence[int], at: Sequence[int], bins: Sequence[int], denoiser: Denoiser) -> Injection:
        """The concept in some of its rows.

        Args:
            rows: of the look.
            at: where they are in the pass.
            bins: timestep bin of every row of the look.
            denoiser: that the pass is through.
        """
        spans = [self.prompts[row].spans[0] for row in rows]
        return inject(self.concept, at, spans, [bins[row] for row in rows], denoiser.device)


def errors_of(
    denoiser: Denoiser, looks: Sequence[Look], window: Window, compared: bool = False
) -> list[tuple[Tensor, Tensor | None]]:
    """Squared errors per sample of each look, (B,): of the concept stream and, if `compared`, of the base model.

    All rows share two passes at most: those whose noise levels lie in `window` attend with the base stream's maps, the
    others with their own. Rows do not know of each other, so each look's errors are those that it has alone.

    Args:
        denoiser: the frozen base model.
        looks: of one size of latents and one length of captions.
        window: share of a sampling run in which maps are replaced.
        compared: whether the base model is asked too.
    """
    levels = denoiser.sigmas.to(denoiser.device)
    latents = torch.cat([look.noised.latents for look in looks])
    sigma = torch.cat([look.noised.sigma for look in looks])
    prompts = [prompt for look in looks for prompt in look.prompts]
    ends = list(accumulate(len(look.prompts) for look in looks))
    bins = [bin_of(look.noised.sigma, levels, look.concept.residual.bins).tolist() for look in looks]

    def predicted(rows: list[int], replaced: bool) -> Tensor:
        """What the concept stream says and, behind it on the channels, what the base model says if it is asked."""
        conditioning = stack([prompts[row].conditioning for row in rows])
        predict = partial(denoiser.predict, latents[rows], sigma[rows], conditioning)
        injections = []
        for look, own_bins, end in zip(looks, bins, ends, strict=True):
            first = end - len(look.prompts)
            at = [place for place, row in enumerate(rows) if first <= row < end]
            if at:
                injections.append(look.injection([rows[place] - first for place in at], at, own_bins, denoiser))
        if not compared:
            return concept_stream(predict, injections, replaced)
        base, ours = both_streams(predict, injections, replaced)
        return torch.cat([ours, base], 1)

    output = by_maps([window.covers(share) for share in share_done(sigma, levels).tolist()], predicted)
    found: list[tuple[Tensor, Tensor | None]] = []
    for look, part in zip(looks, torch.split(output, [len(look.prompts) for look in looks]), strict=True):
        ours, *base = part.chunk(2, 1) if compared else (part,)
        reference = look.noised.errors(base[0], look.masks) if base else None
        found.append((look.noised.errors(ours, look.masks), reference))
    return found
