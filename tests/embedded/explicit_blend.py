"""The oracle of DreamBlend: maps of both models computed and kept, E's latent moved by autograd through them.

Slow on purpose and independent of `infusion_core`'s attention, plans and samplers: it shares only the networks.
"""

from __future__ import annotations

import torch


class Explicit:
    """Materialises softmax maps into `seen`; the last rows' are mixed with those given, if any."""

    def __init__(self, seen, name, given=None, share=1.0):
        self.seen, self.name, self.given, self.share = seen, name, given, share

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        rows, heads = len(hidden_states), attn.heads
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        q, k, v = (x.reshape(rows, x.shape[1], heads, -1).permute(0, 2, 1, 3) for x in (q, k, v))
        maps = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        self.seen[self.name] = maps
        if self.given is not None and self.name in self.given:
            given = self.given[self.name]
            mixed = self.share * given + (1 - self.share) * maps[-len(given) :]
            maps = torch.cat([maps[: -len(given)], mixed])
        out = (maps @ v).permute(0, 2, 1, 3).reshape(rows, hidden_states.shape[1], -1)
        return attn.to_out[0](out)


def predict(model, x, t, states, extras, given=None, share=1.0):
    """The network's output and its maps by site's path."""
    unet, seen = model.denoiser.unet, {}
    before = dict(unet.attn_processors)
    explicit = {n: Explicit(seen, n, given, share) if ".attn2." in n else p for n, p in before.items()}
    unet.set_attn_processor(explicit)
    try:
        out = unet(x, t, encoder_hidden_states=states, added_cond_kwargs=extras or None).sample
    finally:
        unet.set_attn_processor(before)
    return out, seen


def sample(early, late, prompt, noise, steps, guidance, settings, levels=None):
    """DDIM (Song et al. 2021, eq. 12, eta 0) of both models; E's latents.

    Args:
        early, late: models; each encodes the prompt with its own text encoder.
        settings: a `BlendSettings`, whose numbers alone are used.
        levels: names of the sites that take part begin with one of these; all by default.
    """
    alphas = late.scheduler.alphas_cumprod
    late.scheduler.set_timesteps(steps)
    times, n = late.scheduler.timesteps.tolist(), len(noise)
    gap = 1000 // steps
    x = early_x = noise
    texts = {}
    for model in (early, late):
        encoded = [model.text.encode(text).conditioning for text in ("", prompt)]
        texts[id(model)] = [e.repeat(n) for e in encoded]
    for i, t in enumerate(times):
        with torch.no_grad():
            eps, seen = _guided(early, early_x, t, texts[id(early)], guidance)
            given = {name: maps[-n:] for name, maps in seen.items() if not levels or name.startswith(levels)}
            early_x = _ddim(early, early_x, eps, t, gap, alphas)
        guided = i % settings.every == 0 and settings.window.start <= i / steps < settings.window.end
        if guided and settings.mode == "gradient":
            for _ in range(settings.gradient_steps):
                x = _moved(late, x, t, texts[id(late)][1], given, settings)
        with torch.no_grad():
            maps = given if guided and settings.mode == "replacement" else None
            eps, _ = _guided(late, x, t, texts[id(late)], guidance, maps, settings.alpha)
            x = _ddim(late, x, eps, t, gap, alphas)
    return x


def _moved(model, x, t, text, given, settings):
    x = x.detach().clone().requires_grad_()
    _, seen = predict(model, x, t, text.context, text.extras)
    apart = [seen[name] - maps for name, maps in given.items()]
    apart = [a.abs() if settings.distance == "absolute" else a**2 for a in apart]
    total = sum(a.flatten(1).mean(1) for a in apart).sum()
    (gradient,) = torch.autograd.grad(total, x)
    if settings.normalise:
        gradient = gradient / gradient.pow(2).flatten(1).mean(1).sqrt().reshape(-1, 1, 1, 1)
    return (x - settings.alpha * gradient).detach()


def _guided(model, x, t, texts, guidance, given=None, share=1.0):
    states = torch.cat([text.context for text in texts])
    extras = {k: torch.cat([text.extras[k] for text in texts]) for k in texts[0].extras}
    out, seen = predict(model, torch.cat([x, x]), t, states, extras, given, share)
    uncond, cond = out.chunk(2)
    return uncond + guidance * (cond - uncond), seen


def _ddim(model, x, out, t, gap, alphas):
    a = alphas[t]
    b = alphas[t - gap] if t - gap >= 0 else model.scheduler.final_alpha_cumprod
    if model.denoiser.prediction == "v_prediction":
        clean, eps = a.sqrt() * x - (1 - a).sqrt() * out, a.sqrt() * out + (1 - a).sqrt() * x
    else:
        clean, eps = (x - (1 - a).sqrt() * out) / a.sqrt(), out
    return b.sqrt() * clean + (1 - b).sqrt() * eps
