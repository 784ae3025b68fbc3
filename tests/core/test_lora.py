"""Matrices beside frozen layers, against the weights they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from infusion_core.errors import InfusionError
from infusion_core.lora import DOWN, UP, LoraSet


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(2), nn.Linear(6, 4, bias=False)).requires_grad_(False)


def layers(network):
    return {"conv": network[0], "out": network[2]}


def filled(network, rank=2, alpha=3.0):
    lora = LoraSet(layers(network), rank, alpha)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in lora.tensors.items():
        if name.endswith(UP):
            tensor.data.normal_(generator=generator)
    return lora


X = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(2))


def test_a_fresh_set_changes_nothing_and_a_filled_one_what_its_weights_say(network):
    plain = network(X)
    with LoraSet(layers(network), 2).installed():
        assert torch.equal(network(X), plain)
    lora = filled(network)
    added = {
        name: 3.0 / 2 * lora.tensors[f"{name}.{UP}"].flatten(1) @ lora.tensors[f"{name}.{DOWN}"].flatten(1)
        for name in ("conv", "out")
    }
    conv, out = network[0], network[2]
    hidden = F.conv2d(X, conv.weight + added["conv"].reshape(5, 3, 1, 1), conv.bias).flatten(2)
    expected = F.linear(hidden, out.weight + added["out"])
    assert not torch.allclose(expected, plain, atol=1e-2)
    with lora.installed():
        torch.testing.assert_close(network(X), expected)
        with lora.off():
            assert torch.equal(network(X), plain)
        torch.testing.assert_close(network(X), expected)
    assert torch.equal(network(X), plain)


def test_only_the_matrices_have_gradients_and_down_starts_as_in_torchs_linear_layers(network):
    lora = filled(network)
    with lora.installed():
        network(X).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in lora.tensors.values())
    assert all(p.grad is None for p in network.parameters())
    wide = LoraSet({"layer": nn.Linear(100, 3)}, 400).tensors[f"layer.{DOWN}"]
    assert wide.abs().max() <= 0.1 < wide.abs().max() * 1.01
    assert abs(wide.mean()) < 0.001


def test_hooks_are_gone_after_an_error(network):
    plain = network(X)
    with pytest.raises(ZeroDivisionError), filled(network).installed():
        raise ZeroDivisionError
    assert torch.equal(network(X), plain)


def test_half_precision_layers_compute_in_their_own(network):
    lora = filled(network)
    with lora.installed():
        exact = network(X)
        out = network.bfloat16()(X.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, atol=0.3, rtol=0.05)


def test_numbers_of_another_set_are_taken_or_refused(network):
    lora, other = filled(network), LoraSet(layers(network), 2, seed=5)
    other.load(lora.tensors)
    assert all(torch.equal(other.tensors[name], tensor) for name, tensor in lora.tensors.items())
    with pytest.raises(InfusionError, match="another rank"):
        LoraSet(layers(network), 3).load(lora.tensors)


def test_what_cannot_take_a_lora_is_named(network):
    with pytest.raises(InfusionError, match="the layer big cannot"):
        LoraSet({"big": nn.Conv2d(3, 3, 3)}, 2)
    with pytest.raises(InfusionError, match="no layer"):
        LoraSet({}, 2)
    with pytest.raises(InfusionError, match="rank must be at least 1"):
        LoraSet(layers(network), 0)
