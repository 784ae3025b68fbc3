"""What the JSON files of a model may say: size, types and bounds, checked before anything is built from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InfusionError, printable

CONFIG_BYTES = 2**20  # the largest that is known, an index of shards, has 150 KB


class Rule(NamedTuple):
    """What a value must be, in words, and whether it is."""

    says: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """An integer within bounds."""
    return Rule(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def real(low: float, high: float) -> Rule:
    """A number within bounds."""
    return Rule(f"a number from {low} to {high}", lambda v: type(v) in (int, float) and low <= v <= high)


def one_of(*names: str | bool | None) -> Rule:
    """One of some names, or of true, false and null."""
    return Rule(
        f"one of {', '.join(map(json.dumps, names))}", lambda v: any(type(v) is type(n) and v == n for n in names)
    )


def each(rule: Rule, most: int) -> Rule:
    """A list that is neither empty nor long."""
    return Rule(
        f"a list of 1 to {most}, each {rule.says}",
        lambda v: type(v) is list and 1 <= len(v) <= most and all(map(rule.holds, v)),
    )


def either(*rules: Rule) -> Rule:
    """Any of several."""
    return Rule(" or ".join(r.says for r in rules), lambda v: any(r.holds(v) for r in rules))


NOTHING, FLAG = one_of(None), one_of(True, False)
LEVELS, LAYERS, WIDTH = 8, whole(1, 64), whole(1, 16384)
HEADS = whole(1, 1024)
SMALL = real(0, 0.1)  # what keeps a norm from dividing by 0
ACTIVATION = one_of("silu", "swish", "mish", "gelu", "relu")

UNET = {
    "_class_name": one_of("UNet2DConditionModel"),
    "sample_size": whole(1, 512),
    "in_channels": whole(1, 64),
    "out_channels": whole(1, 64),
    "flip_sin_to_cos": FLAG,
    "freq_shift": real(0, 1),
    "down_block_types": each(one_of("CrossAttnDownBlock2D", "DownBlock2D"), LEVELS),
    "mid_block_type": one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
    "up_block_types": each(one_of("CrossAttnUpBlock2D", "UpBlock2D"), LEVELS),
    "block_out_channels": each(WIDTH, LEVELS),
    "layers_per_block": either(LAYERS, each(LAYERS, LEVELS)),
    "downsample_padding": whole(0, 1),
    "mid_block_scale_factor": real(1e-3, 1e3),
    "dropout": real(0, 1),
    "act_fn": ACTIVATION,
    "norm_num_groups": whole(1, 1024),
    "norm_eps": SMALL,
    "cross_attention_dim": WIDTH,
    "transformer_layers_per_block": either(LAYERS, each(LAYERS, LEVELS)),
    "attention_head_dim": either(HEADS, each(HEADS, LEVELS)),
    "num_attention_heads": either(NOTHING, HEADS, each(HEADS, LEVELS)),
    "use_linear_projection": FLAG,
    "upcast_attention": one_of(True, False, None),
    "addition_embed_type": one_of("text_time", None),
    "addition_time_embed_dim": either(NOTHING, WIDTH),
    "projection_class_embeddings_input_dim": either(NOTHING, WIDTH),
    "addition_embed_type_num_heads": HEADS,
}
VAE = {
    "in_channels": whole(3, 3),
    "out_channels": whole(3, 3),
    "latent_channels": whole(4, 4),
    "scaling_factor": real(1e-3, 1e3),
    "force_upcast": FLAG,
    "act_fn": ACTIVATION,
}
AUTOENCODERS = {
    "AutoencoderKL": {
        **VAE,
        "sample_size": either(NOTHING, whole(1, 8192), each(whole(1, 8192), 2)),
        "down_block_types": each(one_of("DownEncoderBlock2D"), LEVELS),
        "up_block_types": each(one_of("UpDecoderBlock2D"), LEVELS),
        "block_out_channels": each(WIDTH, LEVELS),
        "layers_per_block": LAYERS,
        "norm_num_groups": whole(1, 1024),
        "use_quant_conv": FLAG,
        "use_post_quant_conv": FLAG,
        "mid_block_add_attention": FLAG,
    },
    "AutoencoderTiny": {
        **VAE,
        "encoder_block_out_channels": each(WIDTH, LEVELS),
        "decoder_block_out_channels": each(WIDTH, LEVELS),
        "num_encoder_blocks": each(LAYERS, LEVELS),
        "num_decoder_blocks": each(LAYERS, LEVELS),
        "upsample_fn": one_of("nearest"),
        "upsampling_scaling_factor": whole(2, 2),
        "latent_magnitude": real(1e-3, 1e3),
        "latent_shift": real(-1e3, 1e3),
    },
}
TEXT = {
    "model_type": one_of("clip_text_model"),
    "architectures": either(NOTHING, each(one_of("CLIPTextModel", "CLIPTextModelWithProjection"), 1)),
    "vocab_size": whole(3, 2**20),
    "hidden_size": WIDTH,
    "intermediate_size": whole(1, 65536),
    "projection_dim": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": whole(3, 4096),
    "hidden_act": one_of("quick_gelu", "gelu"),
    "layer_norm_eps": SMALL,
    "attention_dropout": real(0, 1),
    "bos_token_id": either(NOTHING, whole(0, 2**20)),
    "eos_token_id": whole(0, 2**20),  # where text is pooled
    "pad_token_id": either(NOTHING, whole(0, 2**20)),
}
SCHEDULERS = (
    *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
    *("DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "DEISMultistep", "UniPCMultistep"),
    *("KDPM2Discrete", "KDPM2AncestralDiscrete", "LCM", "TCD"),
)
SCHEDULER = {
    "_class_name": one_of(*(f"{name}Scheduler" for name in SCHEDULERS)),
    "num_train_timesteps": whole(1, 10_000),
    "beta_start": real(1e-8, 0.999),
    "beta_end": real(1e-8, 0.999),
    "beta_schedule": one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": either(NOTHING, each(real(1e-8, 0.999), 10_000)),
    "clip_sample": FLAG,
    "clip_sample_range": real(1e-3, 1e3),
    "set_alpha_to_one": FLAG,
    "steps_offset": whole(0, 100),
    "thresholding": FLAG,
    "dynamic_thresholding_ratio": real(0, 1),
    "sample_max_value": real(1e-3, 1e3),
    "timestep_spacing": one_of("leading", "trailing", "linspace"),
    "rescale_betas_zero_snr": FLAG,
}
WISHES = {
    "guidance": real(0, 100),
    "steps": whole(1, 1000),
    "temperature": real(1e-3, 1e9),
    "zoom": real(1, 1000),
    "turn": real(0, 180),
    "canvas": one_of("black", "edge"),
    "device": one_of("cpu", "cuda"),
}


def read_json(file: Path, most: int = CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Args:
        file: regular, or a link to such.
        most: bytes that it may have.

    Raises:
        InfusionError: it is missing, too large, no JSON, nested too deeply, or holds a number that is not finite.
    """
    try:
        told = json.loads(read_file(file, most), parse_constant=_not_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InfusionError):
            raise
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InfusionError(
            f"{file} is no usable JSON ({printable(reason)}); get this file of the model again"
        ) from error
    if not isinstance(told, dict):
        raise InfusionError(f"{file} holds no JSON object; get this file of the model again")
    return told


def read_file(file: Path, most: int) -> bytes:
    """The bytes of a small file of a model.

    Raises:
        InfusionError: it is missing, no regular file, unreadable, or larger than `most` bytes.
    """
    if not file.is_file():
        raise InfusionError(f"{file} is missing; the model is not whole, get it again")
    try:
        with file.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise InfusionError(f"{file} cannot be read ({error.strerror}); look at its permissions and disk") from error
    if len(data) > most:
        raise InfusionError(
            f"{file} is larger than {most:,} bytes, as no such file is; get this file of the model again"
        )
    return data


def check(file: Path, told: Mapping[str, Any], rules: Mapping[str, Rule], needed: Sequence[str] = ()) -> None:
    """Hold what a file says against rules; keys without a rule are not looked at.

    Raises:
        InfusionError: names the file, the key, its value and the rule.
    """
    for key in needed:
        if key not in told:
            raise InfusionError(f"{file} does not say {key}; get this file of the model again")
    for key, rule in rules.items():
        if key in told and not rule.holds(told[key]):
            raise InfusionError(
                f"{file}: {key} is {printable(json.dumps(told[key]))}, it must be {rule.says}; "
                "get this file of the model again, or use a Stable Diffusion 1.x, 2.x or XL model"
            )


def _not_finite(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _not_finite(digits[:20])
