"""Test-only nodes that encode text and share out the picture in the ways that trip up whoever counts tokens or rows.

Each does what a pack does that users have, in its own words: NegPip's encoder, attention couple as a model patch and
as a hook, encode nodes that call the CLIP by hand, BREAK, and tiled sampling with several tiles in a batch.
"""

import math
from functools import partial

import torch
from comfy.hooks import EnumHookScope, HookGroup, TransformerOptionsHook, set_hooks_for_conditioning
from torch.nn import functional as F

from .others import TEXT, node

NUMBER = ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0})


def interleaved(encode):
    """An encoder whose tokens have a key and a value in turn; negative weights are of the value alone."""

    def run(pairs):
        positive = [[(token, abs(weight), *rest) for token, weight, *rest in chunk] for chunk in pairs]
        signs = torch.tensor([[math.copysign(1, weight) for _, weight, *_ in chunk] for chunk in pairs]).flatten()
        states, *others = encode(positive)
        return (torch.stack([states, states * signs[None, :, None].to(states)], 2).flatten(1, 2), *others)

    return run


@node(("MODEL", "CLIP"), model="MODEL", clip="CLIP")
def negative_values(model, clip):
    """As NegPip: an object patch on the encoder, and an attn2_patch that takes keys and values apart."""
    model, clip = model.clone(), clip.clone()
    encoder = clip.patcher.model.clip_l
    encode = partial(type(encoder).encode_token_weights, encoder)  # not what an earlier node may have left in place
    clip.patcher.add_object_patch("clip_l.encode_token_weights", interleaved(encode))
    model.set_model_attn2_patch(lambda q, k, v, extra: (q, k[:, 0::2], v[:, 1::2]))
    return model, clip


class Couple:
    """Rows of positive prompts grow by one for a region with a text of its own; each has a half of the picture."""

    def __init__(self, region, strength):
        self.states, self.strength = region[0][0], strength

    def grow(self, q, k, v, extra):
        chunks = extra["cond_or_uncond"]
        rows = len(q) // len(chunks)
        if len(q) != rows * len(chunks) or chunks.count(0) > 1:
            raise ValueError("not the rows that the host has")
        states = self.states.to(v) * self.strength
        length = math.lcm(k.shape[1], states.shape[1])
        region = states.repeat(rows, length // states.shape[1], 1)
        parts = []
        for which, *own in zip(chunks, *(t.chunk(len(chunks)) for t in (q, k, v)), strict=True):
            query, *texts = own
            texts = [t.repeat(1, length // t.shape[1], 1) for t in texts]
            parts.append((query, *texts))
            if which == 0:
                parts.append((query, region, region))
        return tuple(torch.cat(t) for t in zip(*parts, strict=True))

    def merge(self, out, extra):
        chunks = extra["cond_or_uncond"]
        sizes = [2 if which == 0 else 1 for which in chunks]
        rows = len(out) // sum(sizes)
        mask = torch.zeros(1, 1, *extra["activations_shape"][-2:])
        mask[..., : mask.shape[-1] // 2] = 1.0
        mask = F.interpolate(mask, size=extra["activations_shape"][-2:]).flatten(2).transpose(1, 2).to(out)
        merged = []
        for part, size in zip(out.split([rows * s for s in sizes]), sizes, strict=True):
            merged.append(part if size == 1 else part[:rows] * mask + part[rows:] * (1 - mask))
        return torch.cat(merged)


class CoupleHook(TransformerOptionsHook):
    """`Couple` as a hook on a conditioning, whose patches the host puts in front of the model's own."""

    def __init__(self, couple=None):
        super().__init__(hook_scope=EnumHookScope.HookedOnly)
        if couple is not None:
            self.transformers_dict = {"patches": {"attn2_patch": [couple.grow], "attn2_output_patch": [couple.merge]}}


@node(("CONDITIONING",), conditioning="CONDITIONING")
def hook_without_patches(conditioning):
    """A hook that brings wrappers of a forward and no patches, as a reference picture's is."""
    group = HookGroup()
    group.add(TransformerOptionsHook({"wrappers": {}}, EnumHookScope.HookedOnly))
    return set_hooks_for_conditioning(conditioning, hooks=group, append_hooks=True)


@node(("MODEL",), model="MODEL", region="CONDITIONING", strength=NUMBER)
def couple_model(model, region, strength):
    """Attention couple as a model patch."""
    couple, patched = Couple(region, strength), model.clone()
    patched.set_model_attn2_patch(couple.grow)
    patched.set_model_attn2_output_patch(couple.merge)
    return patched


@node(("CONDITIONING",), conditioning="CONDITIONING", region="CONDITIONING", strength=NUMBER)
def couple_hook(conditioning, region, strength):
    """Attention couple as a hook."""
    group = HookGroup()
    group.add(CoupleHook(Couple(region, strength)))
    return set_hooks_for_conditioning(conditioning, hooks=group, append_hooks=True)


@node(("CONDITIONING",), clip="CLIP", text=TEXT, way=(["bare", "copy", "scaled", "noise"],))
def encode_by_hand(clip, text, way):
    """Encoding as many nodes do: the states of the tokens, and a list made by hand."""
    states, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    if way == "copy":
        states = states.clone().half().float()
    if way == "scaled":
        states = states * 0.9
    if way == "noise":
        states = states + torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    return [[states, {"pooled_output": pooled}]]


@node(("CONDITIONING",), clip="CLIP", text=TEXT)
def encode_in_chunks(clip, text):
    """Every part between BREAKs in chunks of its own, the tokens joined before they are encoded."""
    joined = {}
    for part in text.split("BREAK"):
        for encoder, chunks in clip.tokenize(part, return_word_ids=True).items():
            joined.setdefault(encoder, []).extend(chunks)
    return clip.encode_from_tokens_scheduled(joined)


@node(("MODEL",), model="MODEL", tile=("INT", {"default": 8}), at_once=("INT", {"default": 4}))
def tiles(model, tile, at_once):
    """Tiled sampling: `at_once` tiles run in one forward, each with all rows of the batch."""

    def run(apply_model, args):
        x, c = args["input"], args["c"]
        places = [(i, j) for i in range(0, x.shape[-2], tile) for j in range(0, x.shape[-1], tile)]
        out = torch.zeros_like(x)
        for first in range(0, len(places), at_once):
            some = places[first : first + at_once]
            cut = torch.cat([x[..., i : i + tile, j : j + tile] for i, j in some])
            given = {k: v.repeat(len(some), *[1] * (v.ndim - 1)) if torch.is_tensor(v) else v for k, v in c.items()}
            drawn = apply_model(cut, args["timestep"].repeat(len(some)), **given).chunk(len(some))
            for (i, j), part in zip(some, drawn, strict=True):
                out[..., i : i + tile, j : j + tile] = part
        return out

    patched = model.clone()
    patched.set_model_unet_function_wrapper(run)
    return patched


def mix_rows(q, k, v, extra):
    """Rows that are neither the host's nor a region's."""
    return (torch.cat([q, q.mean(0, keepdim=True) / 3]), *(torch.cat([t, t.mean(0, keepdim=True)]) for t in (k, v)))


@node(("MODEL",), model="MODEL")
def mixed_rows(model):
    """A patch that mixes rows."""
    patched = model.clone()
    patched.set_model_attn2_patch(mix_rows)
    patched.set_model_attn2_output_patch(lambda n, extra: n[:-1])
    return patched


NODES = {
    "TestMixedRows": mixed_rows,
    "TestNegativeValues": negative_values,
    "TestCoupleModel": couple_model,
    "TestCoupleHook": couple_hook,
    "TestHookWithoutPatches": hook_without_patches,
    "TestEncodeByHand": encode_by_hand,
    "TestEncodeInChunks": encode_in_chunks,
    "TestTiles": tiles,
}
