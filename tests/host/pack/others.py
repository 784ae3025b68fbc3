"""Test-only nodes: what users stack with Infusion, a second implementation of it, and instruments."""

import json
import sys
from pathlib import Path

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import folder_paths
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from safetensors.torch import load_file

from .tinyworld import UNET


def block_of(side, number, per_level):
    """The UNet block of an attention layer; `per_level` is the number of residual blocks of a level going down."""
    if side == "middle":
        return "mid"
    level = (number - 1) // (per_level + 1) if side == "input" else number // (per_level + 1)
    return f"{'down' if side == 'input' else 'up'}.{level}"


def node(returns, optional=(), **inputs):
    """A V1 node from a function: inputs are host types or widget descriptions."""

    def wrap(function):
        types = {k: v if isinstance(v, tuple) else (v,) for k, v in inputs.items()}
        left_out = {name: types.pop(name) for name in optional}

        class Node:
            RETURN_TYPES = returns
            FUNCTION = "run"
            CATEGORY = "test"

            @classmethod
            def INPUT_TYPES(cls):  # noqa: N802
                return {"required": types, "optional": left_out}

            def run(self, **values):
                made = function(**values)
                return made if len(returns) > 1 else (made,)

        return Node

    return wrap


TEXT = ("STRING", {"default": ""})


def pack_name():
    """What the host calls the pack."""
    return next(n for n in sys.modules if n.endswith("infusion") and hasattr(sys.modules[n], "comfy_entrypoint"))


@node(("SIGMAS",), values=TEXT)
def sigmas(values):
    """Noise levels, separated by spaces."""
    return torch.tensor([float(v) for v in values.split()])


@node(("MODEL",), model="MODEL", name=TEXT)
def row_log(model, name):
    """Write the number of rows of every forward of a sampling run to output/NAME.json."""
    counts = []
    patched = model.clone()

    def count(executor, x, *args, **kwargs):
        counts.append(len(x))
        (Path(folder_paths.get_output_directory()) / f"{name}.json").write_text(json.dumps(counts))
        return executor(x, *args, **kwargs)

    def begin(executor, *args, **kwargs):
        counts.clear()
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "row_log", count)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "row_log", begin)
    return patched


@node(("MODEL",), model="MODEL", name=TEXT)
def moves(model, name):
    """Write how often a concept was brought to a device during a sampling run to output/NAME.json."""
    kind, patched = sys.modules[f"{pack_name()}.infusion_core.concepts"].LoadedConcept, model.clone()

    def sample(executor, *args, **kwargs):
        counted, original = [], kind.to
        kind.to = lambda *where: counted.append(where[1:]) or original(*where)
        try:
            return executor(*args, **kwargs)
        finally:
            kind.to = original
            (Path(folder_paths.get_output_directory()) / f"{name}.json").write_text(json.dumps(len(counted)))

    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "moves", sample)
    return patched


@node(("MODEL",), model="MODEL")
def replacer(model):
    """As IPAdapter does: an attn2 replacer at every layer that adds attention to a few tokens of its own."""
    patched = model.clone()

    def make(seed):
        def replace(q, k, v, extra):
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(2, 1, 4, q.shape[-1], generator=generator).to(q)
            own_k, own_v = drawn.expand(-1, len(q), -1, -1)
            heads = extra["n_heads"]
            return optimized_attention(q, k, v, heads) + 0.3 * optimized_attention(q, own_k, own_v, heads)

        return replace

    places = [("input", 1), ("input", 3), ("middle", 0), *(("output", n) for n in range(4))]
    for i, (side, number) in enumerate(places):
        patched.set_model_attn2_replace(make(i), side, number)
    return patched


@node(("MODEL",), model="MODEL")
def couple(model):
    """As attention couple does: rows grow before cross-attention and are merged after it (here, into themselves)."""
    patched = model.clone()
    patched.set_model_attn2_patch(lambda q, k, v, extra: tuple(t.repeat_interleave(2, 0) for t in (q, k, v)))
    patched.set_model_attn2_output_patch(lambda n, extra: n.unflatten(0, (-1, 2)).mean(1))
    return patched


@node(("MODEL",), model="MODEL")
def regional(model):
    """Attention couple that counts: only the positive prompt's rows grow, and there must be one positive prompt."""
    patched = model.clone()

    def chunks(rows, extra, cuts):
        if extra["cond_or_uncond"].count(0) > 1:
            raise ValueError("more than one positive prompt")
        return rows.split([cuts[which] * (len(rows) // sum(cuts[w] for w in extra["cond_or_uncond"]))
                           for which in extra["cond_or_uncond"]])  # fmt: skip

    def grow(q, k, v, extra):
        one = {0: 1, 1: 1}
        return tuple(
            torch.cat(
                [
                    c.repeat(2 - which, 1, 1)
                    for which, c in zip(extra["cond_or_uncond"], chunks(t, extra, one), strict=True)
                ]
            )
            for t in (q, k, v * 1.1)
        )

    def merge(n, extra):
        parts = zip(extra["cond_or_uncond"], chunks(n, extra, {0: 2, 1: 1}), strict=True)
        return torch.cat([c if which else c.unflatten(0, (2, -1)).mean(0) for which, c in parts])

    patched.set_model_attn2_patch(grow)
    patched.set_model_attn2_output_patch(merge)
    return patched


@node(("MODEL",), model="MODEL")
def self_attention(model):
    """An attn1 patch that changes values, as style and guidance packs do."""
    patched = model.clone()
    patched.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v * 1.05))
    return patched


@node(("CONTROL_NET",))
def control():
    """A randomly initialised ControlNet of TinyWorld's geometry, its zero convolutions no longer zero."""
    torch.manual_seed(5)
    with torch.inference_mode(False):
        config = {k: v for k, v in UNET.items() if k not in ("out_channels", "transformer_depth_output")}
        network = comfy.cldm.cldm.ControlNet(
            **config, hint_channels=3, operations=comfy.ops.manual_cast, device="cpu", dtype=torch.float32
        )
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.03)
    device = comfy.model_management.get_torch_device()
    return comfy.controlnet.ControlNet(network, load_device=device, manual_cast_dtype=None)


@node(("MODEL",), optional=("region", "region_positions", "scale", "tile"), model="MODEL", file=TEXT, positions=TEXT,
      text="CONDITIONING", maps=("BOOLEAN", {"default": True}), region="CONDITIONING", region_positions=TEXT,
      scale=("FLOAT", {"default": 1.0, "min": -1.0}), tile=("INT", {"default": 0}))  # fmt: skip
def reference(model, file, positions, text, maps, region=None, region_positions="", scale=1.0, tile=0):
    """Infusion a second time, by hand: at the model function, on the rows that read one given text.

    Rows that other nodes' patches bring, with the text `region`, receive it too, at places of their own. With `tile`
    the latent is drawn tile by tile. Runs every forward twice. Layout block, one bin, one token.
    """
    delta = {k.removeprefix("residual."): v.float() for k, v in load_file(file).items()}
    where = [int(p) for p in positions.split()]
    wanted = text[0][0]

    per_level = model.model.model_config.unet_config["num_res_blocks"][0]

    def place(extra):
        return (*extra["block"], extra["block_index"])

    def run(apply_model, args):
        x, c = args["input"], args["c"]
        context = c["c_crossattn"]
        own = torch.tensor([torch.equal(row[: wanted.shape[1]], wanted[0].to(row)) for row in context])
        seen = {}

        def record(q, k, v, extra):
            seen[place(extra)] = q.clone()
            return q, k, v

        def supply(q, k, v, extra):
            base = seen[place(extra)]
            q = torch.where(own[:, None, None], base, q) if maps else q
            v = v.clone()
            for row in own.nonzero().flatten().tolist():
                for p in where:
                    for start in range(0, v.shape[1], wanted.shape[1]):
                        v[row, start + p] += scale * delta[block_of(*extra["block"], per_level)][0, 0].to(v)
            return q, k, v

        def supply_region(q, k, v, extra):
            if region is None or len(q) == len(context):
                return q, k, v
            text, v = region[0][0][0].to(v), v.clone()
            for row in range(len(v)):
                for p in map(int, region_positions.split()):
                    for start in range(0, v.shape[1], len(text)):
                        if torch.equal(v[row, start + p], text[p]):
                            v[row, start + p] += delta[block_of(*extra["block"], per_level)][0, 0].to(v)
            return q, k, v

        def forward(*ours):
            options = c["transformer_options"]
            patches = options.get("patches", {})
            first, *last = ours
            patches = {**patches, "attn2_patch": [first, *patches.get("attn2_patch", []), *last]}
            once = {**c, "transformer_options": {**options, "patches": patches}}
            if "control" in c:
                once["control"] = {k: list(v) for k, v in c["control"].items()}
            return apply_model(x, args["timestep"], **once)

        if not own.any():
            return apply_model(x, args["timestep"], **c)
        first, second = forward(record), forward(supply, supply_region)
        return torch.where(own[:, None, None, None], second, first)

    def run_tiles(apply_model, args):
        x, out = args["input"], torch.zeros_like(args["input"])
        for i in range(0, x.shape[-2], tile):
            for j in range(0, x.shape[-1], tile):
                place = (..., slice(i, i + tile), slice(j, j + tile))
                out[place] = run(apply_model, {**args, "input": x[place]})
        return out

    patched = model.clone()
    before = patched.model_options.get("model_function_wrapper")

    def inside(apply_model, args):
        """Within what wraps the model already, as tiled diffusion does."""
        return before(lambda x, t, **c: run(apply_model, {"input": x, "timestep": t, "c": c}), args)

    patched.set_model_unet_function_wrapper(inside if before else run_tiles if tile else run)
    return patched


@node(("MODEL",), model="MODEL")
def low_memory(model):
    """A model that seems too large for more than one conditioning in a batch."""
    patched = model.clone()
    patched.add_object_patch("memory_required", lambda *args, **kwargs: float("inf"))
    return patched


@node(("CONDITIONING",), conditioning="CONDITIONING")
def boxed(conditioning):
    """Conditioning with GLIGEN boxes, whose patch doubles what the block has after self-attention."""

    class Boxes(torch.nn.Module):
        def set_position(self, shape, boxes, device):
            return lambda hidden, extra: hidden * 2

        def set_empty(self, shape, device):
            return lambda hidden, extra: hidden

    place = torch.device("cpu")
    boxes = comfy.model_patcher.ModelPatcher(Boxes(), place, place)
    return [[states, {**options, "gligen": ("position", boxes, [])}] for states, options in conditioning]


@node(("CONDITIONING",), one="CONDITIONING", other="CONDITIONING")
def joined_rows(one, other):
    """As nodes that schedule prompts over a batch do: a row of states for each picture, what else is the first's."""
    return [[torch.cat([one[0][0], other[0][0]]), one[0][1].copy()]]


@node(("CONDITIONING",), conditioning="CONDITIONING")
def bare(conditioning):
    """The states alone, without what travels beside them."""
    return [[states, {}] for states, _ in conditioning]


NODES = {
    "TestLowMemory": low_memory,
    "TestBare": bare,
    "TestRows": joined_rows,
    "TestBoxed": boxed,
    "TestSigmas": sigmas,
    "TestRowLog": row_log,
    "TestMoves": moves,
    "TestReplacer": replacer,
    "TestCouple": couple,
    "TestRegional": regional,
    "TestSelfAttention": self_attention,
    "TestControl": control,
    "TestReference": reference,
}
