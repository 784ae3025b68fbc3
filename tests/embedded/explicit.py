"""The oracle of the two streams: every row in one batch, attention maps computed, copied from row to row, and used.

Slow on purpose and independent of `infusion_core`'s attention, plan and sampler: it shares only the frozen network.
"""

from __future__ import annotations

import torch


class ExplicitProcessor:
    """Materialises softmax maps; rows in `sources` take the map of another row; values get residuals by hand."""

    def __init__(self, sources, additions, layout):
        self.sources, self.additions, self.layout = sources, additions, layout

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        context = encoder_hidden_states.clone()
        rows, heads = hidden_states.shape[0], attn.heads
        if self.layout in ("block", "layer"):
            for row, position, vector in self.additions:
                context[row, position] += vector
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(context)
        if self.layout == "value":
            for row, position, vector in self.additions:
                v[row, position] += vector
        width = q.shape[-1] // heads
        q, k, v = (x.reshape(rows, -1, heads, width).transpose(1, 2) for x in (q, k, v))
        maps = torch.softmax(q @ k.transpose(-1, -2) / width**0.5, dim=-1)  # (R, heads, N, L)
        maps = maps[self.sources]
        out = maps @ v
        if self.layout == "parts":
            for row, position, vector in self.additions:
                values, keys = vector.reshape(2, -1, context.shape[2])
                v_parts, k_parts = (
                    p.reshape(-1, heads, width).transpose(0, 1) for p in (attn.to_v(values), attn.to_k(keys))
                )
                shares = torch.softmax(q[self.sources[row]] @ k_parts.transpose(1, 2) / width**0.5, dim=-1)
                out[row] += maps[row, :, :, position, None] * (shares @ v_parts)
        out = out.transpose(1, 2).reshape(rows, -1, heads * width)
        return attn.to_out[0](out)


def sample(
    model, context, uncond, noise, residuals, spans, steps, guidance, base_latent, unconditional=False, window=(0, 1)
):
    """DDIM from the formula (Song et al. 2021, eq. 12, eta 0) with rows [uncond, base, concept] or four with `own`.

    Args:
        residuals: list of (ConceptResidual, strength), spans: per concept its occurrences.
        unconditional: with `own`, the concept stream's unconditional rows take the base stream's maps too.
        window: shares of the run from which on and up to which rows take the maps of others.
    """
    denoiser, scheduler, n = model.denoiser, model.scheduler, len(noise)
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod
    own = base_latent == "own"
    groups = 4 if own else 3  # own: base uncond, base cond, concept uncond, concept cond
    texts = [uncond, context, uncond, context] if own else [uncond, context, context]
    states = torch.cat([t.expand(n, -1, -1) for t in texts])
    sources = torch.arange(groups * n)
    sources[(groups - 1) * n :] = torch.arange(n) + n  # the concept rows take the base cond rows' maps
    if unconditional:
        sources[2 * n : 3 * n] = torch.arange(n)
    concept_rows = range((groups - 1) * n, groups * n)
    x = base = noise
    before = dict(denoiser.unet.attn_processors)
    gap = 1000 // steps
    for number, t in enumerate(scheduler.timesteps.tolist()):
        taken = sources if window[0] <= number / steps < window[1] else torch.arange(groups * n)
        processors = dict(before)
        for path, site in denoiser._sites.items():
            additions = [
                (row, position, _scaled(residual, site, t, token, strength))
                for (residual, strength), places in zip(residuals, spans, strict=True)
                for row in concept_rows
                for place in places
                for token, position in enumerate(place)
            ]
            processors[f"{path}.attn2.processor"] = ExplicitProcessor(taken, additions, residuals[0][0].layout)
        denoiser.unet.set_attn_processor(processors)
        latents = torch.cat([base, base, x, x] if own else [x, x, x])
        out = denoiser.unet(latents, t, encoder_hidden_states=states).sample.chunk(groups)
        denoiser.unet.set_attn_processor(dict(before))  # it empties the dict it is given
        if own:
            base = _ddim(base, out[0] + guidance * (out[1] - out[0]), t, gap, alphas)
            x = _ddim(x, out[2] + guidance * (out[3] - out[2]), t, gap, alphas)
        else:
            x = _ddim(x, out[0] + guidance * (out[2] - out[0]), t, gap, alphas)
    return x


def _scaled(residual, site, t, token, strength):
    """The numbers of a token, residuals at their strength and keys as they are."""
    numbers = residual.at(site)[t * residual.bins // 1000, token].clone()
    numbers[: len(numbers) // 2 if residual.layout == "parts" else None] *= strength
    return numbers


def _ddim(x, eps, t, gap, alphas):
    a = alphas[t]
    b = alphas[t - gap] if t - gap >= 0 else alphas[0]
    return b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
