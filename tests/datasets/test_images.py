"""Images: upright RGB, refused when outside the root, too large, cut short or no image at all."""

import io

import numpy as np
import pytest
from photos import encoded, picture, png_of_size, shared_files
from PIL import Image

from mllm_align.datasets.errors import Fault
from mllm_align.datasets.images import BytesImage, FileImage, check, from_bytes

KINDS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


def test_a_file_and_its_bytes_load_the_same_pixels(tmp_path):
    data = encoded(picture())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").write_bytes(data)
    image = FileImage(str(tmp_path), "a/b.jpg")
    assert image.key == "a/b.jpg"
    assert image.encoded() == data
    np.testing.assert_array_equal(np.asarray(image.load()), np.asarray(from_bytes(data).load()))
    np.testing.assert_array_equal(np.asarray(image.load()), np.asarray(Image.open(io.BytesIO(data))))


def test_the_key_of_bytes_is_their_hash():
    one, other = encoded(picture(seed=1)), encoded(picture(seed=2))
    assert from_bytes(one).key == from_bytes(one).key != from_bytes(other).key


def test_the_camera_s_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    data = encoded(picture(40, 30), exif=exif.tobytes(), quality=95)
    image = from_bytes(data).load()
    assert image.size == (30, 40)
    flat = np.asarray(Image.open(io.BytesIO(data)))  # (30, 40, 3)
    np.testing.assert_array_equal(np.asarray(image), np.rot90(flat, k=-1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    if mode == "I;16":
        grey = np.asarray(picture().convert("L")).astype(np.uint16) * 257
        data = encoded(Image.fromarray(grey), "PNG")
        loaded = from_bytes(data).load()
        np.testing.assert_array_equal(np.asarray(loaded)[..., 0], grey // 257)
    else:
        data = encoded(picture().convert(mode), "TIFF" if mode == "CMYK" else "PNG")
        loaded = from_bytes(data).load()
    assert loaded.mode == "RGB"
    assert loaded.size == (64, 48)


def test_what_is_transparent_becomes_white():
    assert (
        from_bytes(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")).load().getpixel((0, 0))
        == (255,) * 3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_whole_images_pass_the_check(kind, tmp_path):
    data = encoded(picture(), kind)
    check(from_bytes(data))
    (tmp_path / "x").write_bytes(data)
    check(FileImage(str(tmp_path), "x"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_check_of_a_whole_image_does_not_decode(kind, monkeypatch):
    data = encoded(picture(), kind)
    monkeypatch.setattr("mllm_align.datasets.images.decode", lambda *_: pytest.fail("decoded"))
    check(from_bytes(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_a_cut_image_is_found_by_the_check_and_by_load(kind, share):
    data = encoded(picture(256, 192), kind)
    cut = from_bytes(data[: int(len(data) * share)])
    with pytest.raises(Fault, match=r"cut short or damaged|not an image"):
        check(cut)
    with pytest.raises(Fault, match=r"cut short or damaged|not an image"):
        cut.load()


def test_a_download_that_was_filled_up_with_zeros_is_found():
    data = encoded(picture(256, 192))
    half = len(data) // 2
    with pytest.raises(Fault, match="cut short or damaged"):
        check(from_bytes(data[:half] + bytes(half)))


def test_bytes_after_the_end_are_no_fault():
    check(from_bytes(encoded(picture()) + b"motion photo data" * 9))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 10_000), (14_000, 10_000), (10_001, 10_000)])
def test_more_than_a_hundred_megapixels_are_refused(size):
    image = BytesImage(png_of_size(*size), "big.png")
    for read in (check, BytesImage.load):
        with pytest.raises(Fault, match=r"big.png is too large: .*limit is 100 megapixels.*Scale it down"):
            read(image)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", r"is empty \(0 bytes\)"), (b"<html>404</html>", "is not an image that Pillow can read")],
)
def test_what_is_no_image_is_said(data, words):
    with pytest.raises(Fault, match=words):
        check(BytesImage(data, "x.jpg"))


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "a/../../secret.jpg", "{outside}/secret.jpg", "link.jpg", "dir/secret.jpg"]
)
def test_no_path_leaves_the_root(path, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    for place in (outside, tmp_path):
        (place / "secret.jpg").write_bytes(encoded(picture()))
    (root / "link.jpg").symlink_to(outside / "secret.jpg")
    (root / "dir").symlink_to(outside)
    image = FileImage(str(root), path.format(outside=outside))
    for read in (FileImage.load, FileImage.encoded, check):
        with pytest.raises(Fault, match=r"leaves the image root.*dataset\.image_root"):
            read(image)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(Fault, match=r"a/b\.jpg is not there.*dataset\.image_root"):
        FileImage(str(tmp_path), "a/b.jpg").load()
    with pytest.raises(Fault, match="not a usable path"):
        FileImage(str(tmp_path), "a\0b.jpg").load()


def test_real_photos():
    for file in sorted((shared_files() / "images").glob("*.jpg")):
        image = FileImage(str(file.parent), file.name)
        check(image)
        assert image.load().size == Image.open(file).size
        with pytest.raises(Fault, match="cut short"):
            check(BytesImage(file.read_bytes()[:-2000], file.name))
