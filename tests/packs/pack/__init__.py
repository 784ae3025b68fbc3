"""Test-only nodes: what packs would download."""

import torch


class IPAdapter:
    """An image prompt adapter with random numbers, in the layout of Stable Diffusion 1.5's, that fits TinyWorld."""

    RETURN_TYPES = ("IPADAPTER", "EMBEDS", "EMBEDS")
    FUNCTION = "run"
    CATEGORY = "test"
    MIDDLE = 31  # the number of the layer that is 128 wide

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def run(self):
        drawn = torch.Generator().manual_seed(8)
        layers = {}
        for number in range(1, 33, 2):
            width = 128 if number == self.MIDDLE else 64
            for part in ("k", "v"):
                layers[f"{number}.to_{part}_ip.weight"] = torch.randn(width, 128, generator=drawn) * 0.1
        project = {
            "proj.weight": torch.randn(4 * 128, 32, generator=drawn) * 0.3,
            "proj.bias": torch.zeros(4 * 128),
            "norm.weight": torch.ones(128),
            "norm.bias": torch.zeros(128),
        }
        embeds = torch.randn(1, 32, generator=drawn)
        return {"image_proj": project, "ip_adapter": layers}, embeds, torch.zeros_like(embeds)


NODE_CLASS_MAPPINGS = {"TestIPAdapter": IPAdapter}
