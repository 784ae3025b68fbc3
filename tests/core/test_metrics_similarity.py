from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist, pdist

from infusion_core.errors import InfusionError
from infusion_core.metrics.similarity import (
    CLIP,
    DINO,
    Preprocessing,
    cosines,
    diversity,
    embed,
    masked,
    similarity,
    text_similarity,
)

# As the public preprocessors have them: OpenAI CLIP's, and ImageNet's for DINO.
PUBLISHED = {
    "clip": (CLIP, 224, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "dino": (DINO, 256, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with a little noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), dtype=float)
    return Image.fromarray((smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", [(300, 300), (401, 310), (290, 512), (100, 130)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_preprocessing_is_the_public_tools(name: str, size: tuple[int, int]):
    """Written out with Pillow: shorter edge resized bicubically, centre cut, normalised."""
    ours, resize, mean, std = PUBLISHED[name]
    image = picture(*size)
    short = min(size)
    scaled = image.resize((int(resize * size[0] / short), int(resize * size[1] / short)), Image.Resampling.BICUBIC)
    left, top = (round((edge - 224) / 2) for edge in scaled.size)
    cut = scaled.crop((left, top, left + 224, top + 224))
    expected = (np.asarray(cut, dtype=float) / 255 - mean) / std
    found = ours(tensor(image))[0].permute(1, 2, 0).numpy() - expected
    assert found.shape == (224, 224, 3)
    assert np.abs(found).mean() < 0.004  # half a grey level is 0.008
    assert np.abs(found).max() < 0.03


def test_similarity_is_the_raw_mean_cosine_of_all_pairs():
    generated, reference = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).double()
    reference = reference[:3]
    expected = 1 - cdist(generated.numpy(), reference.numpy(), "cosine")
    np.testing.assert_allclose(cosines(generated, reference).numpy(), expected)
    assert similarity(generated, reference) == pytest.approx(expected.mean())
    assert similarity(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 3.0], [0.0, 2.0], [-5.0, 0.0]])) == pytest.approx(
        (0.5**0.5 + 0 - 1) / 3
    )


def test_every_picture_is_compared_with_its_own_prompt():
    pictures, texts = torch.tensor([[1.0, 0], [0, 2], [1, 1]]), torch.tensor([[2.0, 0], [1, 0], [0, 1]])
    assert text_similarity(pictures, texts) == pytest.approx((1 + 0 + 0.5**0.5) / 3)
    assert text_similarity(pictures, texts[:1]) == pytest.approx((1 + 0 + 0.5**0.5) / 3)


def test_diversity_is_within_prompts():
    embeddings = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).double()
    assert diversity(embeddings) == pytest.approx(pdist(embeddings.numpy(), "cosine").mean())
    grouped = np.concatenate([pdist(embeddings[rows].numpy(), "cosine") for rows in ([0, 3], [1, 2, 4])])
    assert diversity(embeddings, torch.tensor([0, 1, 1, 0, 1, 2])) == pytest.approx(grouped.mean())
    assert diversity(torch.ones(3, 4)) == pytest.approx(0)
    with pytest.raises(InfusionError, match="at least two pictures"):
        diversity(embeddings, torch.arange(6))


def test_a_mask_takes_the_background_out():
    """With the subject in the left half, what is right of it no longer counts."""
    subject, left = tensor(picture(64, 64)), torch.zeros(1, 64, 64)
    left[..., :32] = 1
    elsewhere = torch.where(left[:, None] > 0, subject, tensor(picture(64, 64, 5)))
    kept = [masked(p, left, DINO.mean) for p in (subject, elsewhere)]
    assert torch.equal(*kept)
    assert torch.equal(kept[0][..., :32], subject[..., :32])
    assert (kept[0][0, :, 5, 50] - torch.tensor(DINO.mean)).abs().max() < 1e-6
    with pytest.raises(InfusionError, match="2 masks for 3 pictures"):
        masked(torch.zeros(3, 3, 8, 8), torch.zeros(2, 8, 8), DINO.mean)


def test_embedding_goes_through_mask_preprocessing_and_encoder_in_batches():
    sizes = []

    def encoder(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return pixels.mean((2, 3))

    preprocessing = Preprocessing(16, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    pictures = torch.rand(5, 3, 20, 32)
    found = embed(encoder, pictures, preprocessing, batch=2)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(found, preprocessing(pictures).mean((2, 3)))
    nothing = embed(encoder, pictures, preprocessing, torch.zeros(1, 20, 32))
    assert nothing.abs().max() < 0.01  # the fill is what normalisation turns into 0


def test_a_mask_is_scaled_to_the_pictures_with_antialiasing():
    """A quarter of every cell is subject: a mask four times as large averages to a quarter, wherever the quarter is."""
    for column in range(4):
        stripes = torch.zeros(1, 32, 32, dtype=torch.float64)
        stripes[..., column::4] = 1
        kept = masked(torch.ones(1, 3, 8, 8), stripes, (0.0, 0.2, 0.4))
        assert kept.dtype == torch.float32
        assert kept[0, :, 3, 4].tolist() == pytest.approx([0.25, 0.4, 0.55], abs=0.06)


def test_what_cannot_be_compared_says_what_to_do():
    with pytest.raises(InfusionError, match=r"^diversity needs at least two pictures of a prompt; draw more$"):
        diversity(torch.ones(1, 4))
