from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from infusion_core.embedded.photos import load_photos, square, thumbnail, to_images, to_tensor
from infusion_core.errors import InfusionError
from infusion_core.photos import read_photo


def test_exif_rotation_is_applied(tmp_path):
    photo = Image.new("RGB", (20, 10), "red")
    photo.paste("blue", (0, 0, 10, 10))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 90 degrees clockwise to show
    photo.save(tmp_path / "a.jpg", exif=exif, quality=100)
    (loaded,) = load_photos(tmp_path)
    assert loaded.size == (10, 20)
    assert np.asarray(loaded)[2, 5, 2] > 200  # blue is on top now


def test_alpha_lies_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), "red").quantize(2).save(tmp_path / "b.png", transparency=0)
    for loaded in load_photos(tmp_path):
        assert loaded.mode == "RGB"
        assert np.asarray(loaded).min() == 255


@pytest.mark.parametrize(("mode", "value"), [("L", 128), ("1", 1), ("CMYK", (0, 0, 0, 0)), ("LA", (128, 255))])
def test_every_mode_becomes_rgb(tmp_path, mode, value):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.new(mode, (5, 7), value).save(tmp_path / name)
    (loaded,) = load_photos(tmp_path)
    assert (loaded.mode, loaded.size) == ("RGB", (5, 7))


def test_16_bit_greyscale_keeps_its_range(tmp_path):
    ramp = np.linspace(0, 65535, 100, dtype=np.uint16).reshape(10, 10)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels = np.asarray(load_photos(tmp_path)[0])[..., 0]
    assert pixels[0, 0] == 0
    assert pixels[-1, -1] == 255
    assert 120 <= pixels[4, 9] <= 135


def test_webp_and_order_and_other_files(tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "b.webp", lossless=True)
    Image.new("RGB", (8, 8), "black").save(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("not a photo")
    assert [p.getpixel((0, 0))[0] for p in load_photos(tmp_path)] == [0, 255]


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (7, 7), (128, 128)])
def test_any_aspect_ratio_becomes_the_centre_square(size):
    photo = Image.new("RGB", size, "white")
    left, top = (size[0] - min(size)) // 2, (size[1] - min(size)) // 2
    photo.paste("red", (left, top, left + min(size), top + min(size)))
    out = square(photo, 64)
    assert out.size == (64, 64)
    assert (np.asarray(out)[8:-8, 8:-8] == (255, 0, 0)).all()


def test_pixels_survive_the_way_to_tensors_and_back():
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    tensor = to_tensor([picture])
    assert tensor.shape == (1, 3, 4, 4)
    assert tensor.min() >= -1
    assert to_images(tensor)[0].tobytes() == picture.tobytes()


def test_thumbnails_are_small_jpegs():
    data = thumbnail(Image.new("RGB", (640, 480), "red"))
    assert data.startswith(b"\xff\xd8")
    assert len(data) < 4000


def test_bad_folders_and_files(tmp_path):
    with pytest.raises(InfusionError, match=r"gone: there is no such folder; give the folder that holds your photos"):
        load_photos(tmp_path / "gone")
    with pytest.raises(InfusionError, match="no photos in"):
        load_photos(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    with pytest.raises(InfusionError, match=r"no photos in .* can be used \(broken\.jpg \(damaged: "):
        load_photos(tmp_path)
    (tmp_path / "broken.jpg").unlink()
    whole = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(whole)
    whole.write_bytes(whole.read_bytes()[:-800])
    with pytest.raises(InfusionError, match=r"cut\.png \(damaged: image file is truncated"):
        load_photos(tmp_path)


def test_a_colour_profile_is_obeyed(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tmp.").replace(b"bXYZ", b"rXYZ").replace(b"tmp.", b"bXYZ")  # red means blue
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png", icc_profile=swapped)
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "b.png", icc_profile=swapped)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "c.png", icc_profile=b"not a profile")
    blue, pale, red = (np.asarray(photo)[0, 0].tolist() for photo in load_photos(tmp_path))
    assert np.abs(np.array(blue) - (0, 0, 255)).max() <= 2
    assert np.abs(np.array(pale) - (127, 127, 255)).max() <= 2
    assert red == [255, 0, 0]


def test_of_an_animation_the_first_picture_counts(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "b.webp", "c.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    for photo in load_photos(tmp_path):
        assert np.abs(np.asarray(photo, dtype=int)[0, 0] - (255, 0, 0)).max() <= 1


def test_large_jpegs_are_decoded_smaller(tmp_path):
    Image.new("RGB", (1600, 800), "red").save(tmp_path / "a.jpg")
    assert read_photo(tmp_path / "a.jpg").size == (1600, 800)
    assert read_photo(tmp_path / "a.jpg", shortest=100).size == (200, 100)


def test_no_other_decoder_runs_and_half_files_are_refused_even_where_a_pack_allows_them(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(InfusionError, match="a TIFF picture or raw photo; save it as JPEG"):
        read_photo(tmp_path / "a.tif")
    Image.effect_noise((64, 64), 50).save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-300])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InfusionError, match=r"damaged: .*truncated"):
        read_photo(tmp_path / "b.jpg")
    assert ImageFile.LOAD_TRUNCATED_IMAGES
