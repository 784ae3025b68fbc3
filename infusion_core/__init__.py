"""Infusion: personalisation that changes nothing else. The core needs torch, safetensors and numpy only."""

__version__ = "0.1.0"
