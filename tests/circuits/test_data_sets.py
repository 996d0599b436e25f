"""Images reach the model cropped, resized and coloured as told, in a fixed order, or the error names the file."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from circuits.data.folders import celeba, image_folder
from circuits.data.image_sets import ImageSet, to_pixels
from circuits.data.lfw_faces import lfw_faces, lfw_split
from circuits.data.source_spec import SourceSpec
from circuits.data.sources import REFERENCE_IMAGES, SOURCES, DataError, load_data_set
from circuits.vocabulary import SOURCE_NAMES

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def flat(size: tuple[int, int], colour: Any, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def write_images(folder: Path, n: int, suffix: str = ".png") -> Path:
    """n flat gray images, number i of brightness i."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        flat((9, 9), i, "L").save(folder / f"{i:04d}{suffix}")
    return folder


# pixels


def test_the_centre_is_cropped_whatever_the_orientation() -> None:
    for size in ((30, 10), (10, 30)):
        image = flat(size, RED)
        image.paste(flat((10, 10), GREEN), ((size[0] - 10) // 2, (size[1] - 10) // 2))
        pixels = to_pixels(image, 7, 3)
        assert pixels.shape == (3, 7, 7)
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels[1], 1)
        np.testing.assert_array_equal(pixels[[0, 2]], -1)


def test_colours_and_luma() -> None:
    for colour, luma in ((RED, 76), (GREEN, 150), (BLUE, 29), ((255, 255, 255), 255), ((0, 0, 0), 0)):
        gray = to_pixels(flat((5, 5), colour), 5, 1)
        np.testing.assert_allclose(gray, luma / 127.5 - 1, atol=1e-6)
        rgb = to_pixels(flat((5, 5), colour), 5, 3)
        np.testing.assert_allclose(rgb[:, 0, 0], np.array(colour) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(to_pixels(flat((5, 5), 64, "L"), 5, 3), 64 / 127.5 - 1, atol=1e-6)


def test_the_size_stays_exact_and_other_sizes_are_antialiased() -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (11, 11)).astype(np.uint8)
    np.testing.assert_array_equal(to_pixels(Image.fromarray(drawn), 11, 1)[0], drawn.astype(np.float32) / 127.5 - 1)
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = to_pixels(Image.fromarray(board), 16, 1)
    assert np.abs(small).max() < 0.1, "a fine checkerboard becomes gray, not an alias"
    assert to_pixels(Image.fromarray(drawn), 37, 1).shape == (1, 37, 37)


def test_photographs_are_turned_upright() -> None:
    image = flat((8, 8), RED)
    image.paste(flat((8, 4), GREEN), (0, 0))  # green above
    exif = image.getexif()
    exif[0x0112] = 3  # taken upside down
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    pixels = to_pixels(Image.open(file), 8, 3)
    assert (pixels[1, 6:] == 1).all()
    assert (pixels[0, :2] == 1).all()


def test_sixteen_bits_transparency_and_palettes() -> None:
    deep = Image.fromarray(np.full((5, 5), 0x8000, dtype=np.uint16))
    np.testing.assert_allclose(to_pixels(deep, 5, 1), 128 / 127.5 - 1, atol=1e-6)
    clear = flat((5, 5), (255, 0, 0, 0), "RGBA")
    np.testing.assert_array_equal(to_pixels(clear, 5, 3), 1)
    palette = flat((5, 5), GREEN).convert("P")
    np.testing.assert_array_equal(to_pixels(palette, 5, 3)[:, 0, 0], [-1, 1, -1])
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes([0] * 256))
    np.testing.assert_array_equal(to_pixels(Image.open(file), 5, 3), 1)
    with pytest.raises(ValueError, match="floating-point numbers"):
        to_pixels(Image.fromarray(np.zeros((5, 5), dtype=np.float32)), 5, 1)
    with pytest.raises(ValueError, match=r"1 \(gray\) or 3 \(rgb\) channels, the model wants 4"):
        to_pixels(flat((5, 5), RED), 5, 4)


# sets of images


def test_fingerprints_tell_pixels_and_shapes_apart() -> None:
    pixels = torch.arange(16.0).reshape(2, 1, 2, 4)
    images = ImageSet("a", pixels, ("x", "y"), None, "")
    same = ImageSet("b", pixels.clone(), ("other", "names"), True, "other words")
    assert images.fingerprint() == same.fingerprint() == images.take([0, 1]).fingerprint()
    others = [images.take([1, 0]), images.take([0]), ImageSet("a", pixels.reshape(2, 1, 4, 2), ("x", "y"), None, "")]
    changed = pixels.clone()
    changed[1, 0, 1, 3] += 1e-6 * 15
    others.append(ImageSet("a", changed, ("x", "y"), None, ""))
    assert len({s.fingerprint() for s in [images, *others]}) == 5
    assert images.take([1]).ids == ("y",)
    assert len(images.take([1])) == 1


def test_the_split_of_the_real_faces_is_fixed_for_ever() -> None:
    train, held_out = lfw_split()
    assert (len(train), len(held_out)) == (36, 64)
    assert sorted(train + held_out) == list(range(100))
    digest = hashlib.sha256(json.dumps([sorted(train), sorted(held_out)]).encode()).hexdigest()[:16]
    assert digest == "15ba89af6ca01395", "the shipped model has seen the 36 faces of this split, and no others"
    assert held_out != sorted(held_out), "the first n are a fair sample, not the first of the source"


def test_the_real_faces() -> None:
    train, held_out = lfw_faces(32, 1, "train"), lfw_faces(32, 1)
    assert (train.images.shape, held_out.images.shape) == ((36, 1, 32, 32), (64, 1, 32, 32))
    assert (train.held_out, held_out.held_out) == (False, True)
    assert set(train.ids).isdisjoint(held_out.ids)
    assert held_out.images.dtype == torch.float32
    assert held_out.images.min() >= -1
    assert held_out.images.max() <= 1
    assert len({image.numpy().tobytes() for image in torch.cat([train.images, held_out.images])}) == 100
    assert held_out.fingerprint() == "b4f5e4d525e2d968"
    rgb = lfw_faces(14, 3, "train").images
    assert rgb.shape == (36, 3, 14, 14)
    assert torch.equal(rgb[:, 0], rgb[:, 2])


# folders


def test_a_folder_is_read_in_a_fixed_random_order(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 23)
    write_images(tmp_path / "photos" / "more" / "deep", 6, ".BMP")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "._0001.png").write_bytes(b"what macOS leaves behind")
    found = image_folder(tmp_path / "photos", 5, 1)
    assert (found.name, len(found), found.held_out) == ("photos", 29, None)
    assert set(found.ids) == {f"{i:04d}.png" for i in range(23)} | {f"more/deep/{i:04d}.BMP" for i in range(6)}
    assert found.ids != tuple(sorted(found.ids))
    for name, image in zip(found.ids, found.images, strict=True):
        np.testing.assert_allclose(image, int(name[-8:-4]) / 127.5 - 1, atol=1e-6, err_msg=name)
    first = image_folder(str(tmp_path / "photos"), 5, 1, limit=7)
    assert first.ids == found.ids[:7]
    assert torch.equal(first.images, found.images[:7])


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    whole = (tmp_path / "0001.png").read_bytes()
    for content in (b"", b"not an image", whole[: len(whole) // 2]):
        (tmp_path / "0001.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"0001\.png is not a readable image \(.+\)") as caught:
            image_folder(tmp_path, 5, 1)
        assert "\n" not in str(caught.value)


def test_folders_that_are_not_there_or_empty(tmp_path: Path) -> None:
    write_images(tmp_path / "faces", 1)
    with pytest.raises(FileNotFoundError, match=rf"no folder .*/facse; did you mean '{tmp_path}/faces'\?$"):
        image_folder(tmp_path / "facse", 5, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*empty \(looked for \.bmp, \.jpeg, \.jpg"):
        image_folder(tmp_path / "empty", 5, 1)


@pytest.mark.parametrize(
    "layout",
    ["img_align_celeba/img_align_celeba", "img_align_celeba", "celeba/img_align_celeba", "CelebAMask-HQ/CelebA-HQ-img",
     "CelebA-HQ-img", ""],
)  # fmt: skip
def test_celeba_in_its_usual_layouts(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "root"
    write_images(root / layout, 5, ".jpg")
    (root / "list_attr_celeba.txt").write_text("5")
    if layout.startswith("CelebA"):
        write_images(root / layout / ".." / "CelebAMask-HQ-mask-anno" / "0", 3)  # masks are no faces
    found = celeba(root, 9, 1, limit=4)
    assert len(found) == 4
    assert set(found.ids) <= {f"{i:04d}.jpg" for i in range(5)}


def parquet(folder: Path, name: str, values: list[int]) -> Path:
    rows = []
    for value in values:
        file = io.BytesIO()
        flat((6, 6), value, "L").save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": f"{value}.png"})
    pq.write_table(pa.table({"image": rows, "label": [0] * len(rows)}), folder / name)
    return folder


def test_celeba_from_the_hub_in_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path, "train-00000.parquet", [10, 20, 30])
    parquet(tmp_path, "train-00001.parquet", [40, 50])
    asked: dict[str, object] = {}

    def download(name: str, **settings: object) -> str:
        asked.update(settings, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = celeba("owner/faces", 4, 1, limit=4)
    assert asked["name"] == "owner/faces"
    assert asked["repo_type"] == "dataset"
    assert "*.py" not in asked["allow_patterns"]  # type: ignore[operator]
    assert found.ids == ("train-00000_0", "train-00000_1", "train-00000_2", "train-00001_0")
    np.testing.assert_allclose(found.images[:, 0, 0, 0], np.array([10, 20, 30, 40]) / 127.5 - 1, atol=1e-6)
    assert len(celeba("owner/faces", 4, 1)) == 5
    pq.write_table(pa.table({"image": [{"bytes": b"junk", "path": "x"}]}), tmp_path / "train-00000.parquet")
    with pytest.raises(ValueError, match="train-00000_0 is not a readable image"):
        celeba("owner/faces", 4, 1)
    pq.write_table(pa.table({"picture": [1]}), tmp_path / "train-00000.parquet")
    with pytest.raises(ValueError, match=r"train-00000\.parquet has no column 'image'; columns: picture"):
        celeba("owner/faces", 4, 1)
    pq.write_table(pa.table({"image": [7]}), tmp_path / "train-00000.parquet")
    with pytest.raises(ValueError, match=r"row 0: expected an image as \{bytes, path\}, got 7"):
        celeba("owner/faces", 4, 1)


# data sets by name


@pytest.mark.parametrize("channels", [1, 3])
def test_the_default_data_sets(channels: int) -> None:
    for source, label in (("synthetic_faces", 0), ("lfw_faces", 1)):
        data = load_data_set(SourceSpec("mine", source, label), images=5, size=16, channels=channels)
        assert (data.name, data.label, data.measured.name, data.reference.name) == ("mine", label, "mine", "mine")
        assert data.measured.images.shape == (5, channels, 16, 16)
        assert set(data.measured.ids).isdisjoint(data.reference.ids)
        assert data.measured.held_out
        assert len(data.reference) == {"synthetic_faces": REFERENCE_IMAGES, "lfw_faces": 36}[source]
        assert data.labels(3).tolist() == [label] * 3  # type: ignore[union-attr]
        unconditional = load_data_set(
            SourceSpec("mine", source, label), images=2, size=16, channels=channels, label_mode="none"
        )
        assert unconditional.labels(3) is None
        assert torch.equal(unconditional.measured.images, data.measured.images[:2]), "the first images stay the first"


def test_measured_synthetic_faces_are_none_of_the_trained_ones() -> None:
    data = load_data_set(SourceSpec("s", "synthetic_faces"), images=3, size=16, channels=1)
    assert data.measured.ids == ("synthetic_1000000", "synthetic_1000001", "synthetic_1000002")


@pytest.mark.parametrize(("there", "images", "references", "shared"), [(100, 20, 64, False), (30, 20, 10, False),
                                                                       (25, 20, 20, True)])  # fmt: skip
def test_references_of_a_folder_are_other_images_where_there_are_enough(
    tmp_path: Path, there: int, images: int, references: int, shared: bool
) -> None:
    write_images(tmp_path / "f", there)
    spec = SourceSpec("natural", "image_folder", root=str(tmp_path / "f"))
    data = load_data_set(spec, images=images, size=5, channels=1)
    assert len(data.measured) == images
    assert len(data.reference) == references
    assert (set(data.measured.ids) == set(data.reference.ids)) == shared
    assert set(data.measured.ids).isdisjoint(data.reference.ids) != shared


@pytest.mark.parametrize(
    ("spec", "images", "message"),
    [
        (SourceSpec("x", "lfw_face"), 4, "data set 'x': unknown source 'lfw_face'; did you mean 'lfw_faces'? valid: "),
        (
            SourceSpec("x", "lfw_faces"),
            65,
            "sweep.images=65, but data set 'x' has 64 images to measure; ask for at most 64",
        ),
        (SourceSpec("x", "image_folder"), 4, "data set 'x' (image_folder) needs data.root=DIR"),
        (SourceSpec("x", "celeba"), 4, "data set 'x' (celeba) needs data.root=DIR"),
        (SourceSpec("x", "image_folder", root="TMP/facse"), 4, "no folder TMP/facse; did you mean 'TMP/faces'?"),
        (SourceSpec("x", "celeba", root="TMP/facse"), 4, "is no hub data set (owner/name); did you mean 'TMP/faces'?"),
        (SourceSpec("x", "image_folder", root="TMP/faces"), 4, "has 3 images to measure; ask for at most 3"),
        (SourceSpec("x", "image_folder", root="TMP/broken"), 1, "0000.png is not a readable image"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(tmp_path: Path, spec: SourceSpec, images: int, message: str) -> None:
    write_images(tmp_path / "faces", 3)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0000.png").write_bytes(b"x")
    spec = SourceSpec(spec.name, spec.source, spec.label, spec.root and spec.root.replace("TMP", str(tmp_path)))
    with pytest.raises(DataError) as caught:
        load_data_set(spec, images=images, size=5, channels=1)
    assert message.replace("TMP", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    load: Callable[[], object] = lambda: load_data_set(  # noqa: E731
        SourceSpec("x", "celeba", root="owner/celeba"), images=2, size=5, channels=1
    )
    with pytest.raises(DataError, match=r"'owner/celeba' is no local folder and could not be fetched .*: no route$"):
        load()


def test_sources_are_those_that_settings_may_name() -> None:
    assert tuple(SOURCES) == SOURCE_NAMES
