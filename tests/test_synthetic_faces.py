"""Synthetic faces: the same face for the same number, exact masks, and attributes that do what their names say."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from circuits.data.synthetic_faces import PARTS, SyntheticFaces, face_attributes, render_faces, synthetic_faces

N, SIZE = 97, 32
X = (np.arange(SIZE) + 0.5) * 2 / SIZE - 1


@pytest.fixture(scope="module")
def faces() -> SyntheticFaces:
    return synthetic_faces(range(N))


def part(faces: SyntheticFaces, name: str) -> np.ndarray:
    return faces.parts[:, PARTS.index(name)]


def frontal(**changes: Any) -> pd.DataFrame:
    """Eleven different faces looking straight ahead under a mild light, with `changes` applied to all of them."""
    straight: dict[str, Any] = {
        "yaw": 0.0,
        "roll": 0.0,
        "shift_x": 0.0,
        "shift_y": 0.0,
        "scale": 1.0,
        "face_width": 1.0,
    }
    plain: dict[str, Any] = {
        "hair_style": "short",
        "glasses": False,
        "beard": False,
        "light_azimuth": 0.0,
        "mouth_open": 0.0,
    }
    return face_attributes(range(11)).assign(**straight, **plain).assign(**changes)


def test_a_face_is_the_same_in_any_call_and_any_order() -> None:
    # 131 faces cross a chunk's end at this size; a face must not notice.
    many = synthetic_faces(range(131), seed=5)
    few = synthetic_faces([130, 3, 64], seed=5)
    np.testing.assert_array_equal(few.images, many.images[[130, 3, 64]])
    np.testing.assert_array_equal(few.parts, many.parts[[130, 3, 64]])
    pd.testing.assert_frame_equal(few.attributes, many.attributes.loc[[130, 3, 64]])


def test_faces_differ_by_index_and_by_seed(faces: SyntheticFaces) -> None:
    flat = faces.images.reshape(N, -1)
    distances = np.abs(flat[:, None] - flat[None]).mean(axis=-1) + np.eye(N)
    assert distances.min() > 0.02
    other = synthetic_faces(range(N), seed=1)
    assert np.abs(faces.images - other.images).mean(axis=(1, 2, 3)).min() > 0.02


@pytest.mark.parametrize(("colour", "channels"), [("gray", 1), ("rgb", 3)])
@pytest.mark.parametrize("size", [8, 25, 37, 64, 129])
def test_shapes_types_and_range(size: int, colour: str, channels: int) -> None:
    faces = synthetic_faces(range(5), size=size, colour=colour)  # type: ignore[arg-type]
    assert faces.images.shape == (5, channels, size, size)
    assert faces.images.dtype == np.float32
    assert faces.parts.shape == (5, 8, size, size)
    assert faces.parts.dtype == bool
    assert np.abs(faces.images).max() <= 1
    np.testing.assert_array_equal(faces.parts.sum(axis=1), 1)


def test_no_indices_give_no_faces() -> None:
    faces = synthetic_faces([])
    assert faces.images.shape == (0, 1, 32, 32)
    assert len(faces.attributes) == 0


def test_exposure_is_that_of_photographs(faces: SyntheticFaces) -> None:
    """The first 100 crops of `lfw_subset` have mean -0.09 and standard deviation 0.43 on the same scale."""
    assert faces.images.mean() == pytest.approx(-0.09, abs=0.1)
    assert faces.images.std() == pytest.approx(0.43, abs=0.1)


@pytest.mark.parametrize("size", [25, 32])
def test_exactly_the_parts_that_attributes_switch_on_are_present(size: int) -> None:
    faces = synthetic_faces(range(307), size=size)
    shown = np.asarray(faces.parts.any(axis=(2, 3)))
    present = pd.DataFrame(shown, columns=list(PARTS), index=faces.attributes.index)
    a = faces.attributes
    assert present[["skin", "eyes", "brows", "nose", "mouth", "background"]].all(axis=None)
    np.testing.assert_array_equal(present["glasses"], a["glasses"])
    np.testing.assert_array_equal(present["hair"], (a["hair_style"] != "bald") | a["beard"])


def test_attributes_are_drawn_as_documented() -> None:
    a = face_attributes(range(4001))
    assert a["glasses"].mean() == pytest.approx(0.3, abs=0.03)
    assert a["beard"].mean() == pytest.approx(0.25, abs=0.03)
    assert (a["mouth_open"] == 0).mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(a["hair_style"].value_counts(normalize=True), 1 / 6, atol=0.03)
    assert a["skin_tone"].std() == pytest.approx(1 / np.sqrt(12), abs=0.01)  # uniform on [0, 1]
    assert a["gaze_x"].std() == pytest.approx(1 / np.sqrt(6), abs=0.01)  # triangular on [-1, 1]
    correlation = a.select_dtypes("number").corr().to_numpy()
    assert np.abs(correlation - np.eye(len(correlation))).max() < 5 / np.sqrt(4001)


def test_rgb_has_the_luminance_of_gray(faces: SyntheticFaces) -> None:
    rgb = synthetic_faces(range(N), colour="rgb")
    luminance = np.einsum("c,nchw->nhw", [0.299, 0.587, 0.114], rgb.images)
    # Painting is linear in colour: only highlights, clipped per channel, may differ.
    unclipped = np.abs(rgb.images).max(axis=1) < 0.8
    np.testing.assert_allclose(luminance[unclipped], faces.images[:, 0][unclipped], atol=0.02)
    assert np.abs(luminance - faces.images[:, 0]).mean() < 0.005
    np.testing.assert_array_equal(rgb.parts, faces.parts)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_larger_picture_averages_to_the_smaller(faces: SyntheticFaces, factor: int) -> None:
    large = synthetic_faces(range(13), size=SIZE * factor).images
    averaged = large.reshape(13, 1, SIZE, factor, SIZE, factor).mean(axis=(3, 5))
    assert np.abs(averaged - faces.images[:13]).mean() < 0.01


@pytest.mark.parametrize(("azimuth", "sign"), [(-1.0, -1), (1.0, 1)])
def test_the_side_towards_the_light_is_brighter(azimuth: float, sign: int) -> None:
    faces = render_faces(frontal(light_azimuth=azimuth, light_strength=0.8))
    skin = part(faces, "skin")
    for image, mask in zip(faces.images[:, 0], skin, strict=True):
        assert sign * (image[:, X > 0][mask[:, X > 0]].mean() - image[:, X < 0][mask[:, X < 0]].mean()) > 0.1


def test_light_leaves_the_background_alone() -> None:
    left, right = (render_faces(frontal(light_azimuth=azimuth)) for azimuth in (-1.0, 1.0))
    np.testing.assert_array_equal(left.parts, right.parts)
    corner = part(left, "background")[:, None] & (X[:, None] < 0.5)  # above the shoulders
    interior = corner & np.roll(corner, 1, axis=3) & np.roll(corner, -1, axis=3)  # whole pixels of it
    assert interior.any(axis=(1, 2, 3)).sum() >= 8
    assert np.median(np.abs(left.images - right.images)[interior]) == 0


def corner_lift(faces: SyntheticFaces) -> np.ndarray:
    """How far the corners of each mouth lie above its middle, in pixels."""
    rows = np.arange(faces.parts.shape[-1])
    lifts = []
    for mask in part(faces, "mouth"):
        columns = np.flatnonzero(mask.any(axis=0))
        height = [(rows * mask[:, c]).sum() / mask[:, c].sum() for c in columns]
        lifts.append(height[len(height) // 2] - (height[1] + height[-2]) / 2)
    return np.array(lifts)


def test_a_smile_lifts_the_corners_and_a_frown_drops_them() -> None:
    assert (corner_lift(render_faces(frontal(mouth_smile=1.0), size=64)) > 2).all()
    assert (corner_lift(render_faces(frontal(mouth_smile=-1.0), size=64)) < -2).all()
    np.testing.assert_allclose(corner_lift(render_faces(frontal(mouth_smile=0.0), size=64)), 0, atol=0.6)


def centre(mask: np.ndarray) -> np.ndarray:
    """Mean column of every mask, in frame units."""
    ticks = (np.arange(mask.shape[-1]) + 0.5) * 2 / mask.shape[-1] - 1
    return (mask * ticks).sum(axis=(1, 2)) / mask.sum(axis=(1, 2))


def test_a_frontal_face_is_symmetric() -> None:
    faces = render_faces(frontal(gaze_x=0.0), size=64)
    for name in ("eyes", "brows", "nose", "mouth"):
        mask = part(faces, name)
        np.testing.assert_array_equal(mask, mask[:, :, ::-1])


def test_yaw_moves_the_features_and_the_nose_most() -> None:
    turned = render_faces(frontal(yaw=0.2), size=64)
    eyes, mouth, nose = (centre(part(turned, name)) for name in ("eyes", "mouth", "nose"))
    assert (eyes > 0.12).all()
    assert (mouth > 0.12).all()
    assert (nose > mouth).all()


def pupils(attributes: pd.DataFrame) -> np.ndarray:
    """Mean column of each pupil (left of the picture, right), frame units; in a light face only pupils are black."""
    faces = render_faces(attributes.assign(skin_tone=1.0, eye_colour="grey", eye_size=1.2, gaze_y=0.0), size=128)
    black = (faces.images[:, 0] < -0.85) & part(faces, "eyes")
    halves = [black & (np.arange(128) < 64), black & (np.arange(128) >= 64)]
    return np.stack([centre(half) for half in halves])


def test_gaze_moves_both_pupils_the_same_way() -> None:
    left, right = pupils(frontal(gaze_x=-1.0)), pupils(frontal(gaze_x=1.0))
    np.testing.assert_allclose(right - left, 0.12, atol=0.03)
    spacing = np.tile(frontal()["eye_spacing"].to_numpy(), (2, 1)) * [[-1], [1]]
    np.testing.assert_allclose((right + left) / 2, spacing, atol=0.03)


@pytest.mark.parametrize(
    ("attribute", "name", "low", "high"),
    [
        ("eye_size", "eyes", 0.85, 1.2),
        ("brow_thickness", "brows", 0.04, 0.07),
        ("nose_length", "nose", 0.85, 1.15),
        ("nose_width", "nose", 0.12, 0.2),
        ("mouth_width", "mouth", 0.22, 0.34),
        ("mouth_open", "mouth", 0.0, 1.0),
        ("hair_style", "hair", "short", "long"),
    ],
)
def test_a_larger_attribute_covers_more(attribute: str, name: str, low: object, high: object) -> None:
    small, large = (render_faces(frontal(**{attribute: value}), size=64) for value in (low, high))
    assert (part(large, name).sum(axis=(1, 2)) > 1.1 * part(small, name).sum(axis=(1, 2))).all()


def test_frame_thickness_covers_more_and_only_with_glasses() -> None:
    thin, thick = (render_faces(frontal(glasses=True, glasses_thickness=t), size=64) for t in (0.045, 0.085))
    assert (part(thick, "glasses").sum(axis=(1, 2)) > 1.3 * part(thin, "glasses").sum(axis=(1, 2))).all()
    first, second = (render_faces(frontal(glasses=False, glasses_thickness=t)).images for t in (0.045, 0.085))
    np.testing.assert_array_equal(first, second)


def test_glasses_change_only_the_pixels_around_the_frame() -> None:
    off, on = render_faces(frontal(glasses=False)), render_faces(frontal(glasses=True))
    changed = (off.images != on.images)[:, 0]
    assert changed[part(on, "glasses")].all()
    rows = np.flatnonzero(changed.any(axis=(0, 2)))
    assert X[rows].min() > -0.45  # below the forehead
    assert X[rows].max() < 0.1  # above the tip of the nose


def test_angry_brows_rise_outwards() -> None:
    rows = np.arange(64)[None, :, None]
    angry, sad = (part(render_faces(frontal(brow_angle=b), size=64), "brows") for b in (0.3, -0.3))
    outer = slice(5, 16)  # the half of the left brow that is further from the nose
    heights = [(rows * m)[..., outer].sum((1, 2)) / m[..., outer].sum((1, 2)) for m in (angry, sad)]
    assert (heights[0] < heights[1] - 1).all()


def test_skin_tone_and_background_luminance_are_luminances() -> None:
    dark, light = (render_faces(frontal(skin_tone=tone)) for tone in (0.0, 1.0))
    skin = part(dark, "skin")
    assert all(light.images[i, 0][skin[i]].mean() > dark.images[i, 0][skin[i]].mean() + 0.4 for i in range(11))
    plain = render_faces(frontal(background="plain", background_luminance=0.3, background_tint=0.0))
    np.testing.assert_allclose(plain.images[:, 0, 14, 0], 2 * 0.3 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": [3, -2]}, "indices: expected all >= 0, got -2"),
        ({"indices": [0], "size": 7}, "size: expected >= 8, got 7"),
        ({"indices": [0], "colour": "sepia"}, "colour: expected 'gray' or 'rgb', got 'sepia'"),
        ({"indices": [0], "seed": -1}, "seed: expected >= 0, got -1"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_faces(**arguments)


def test_bad_attributes_are_named() -> None:
    with pytest.raises(ValueError, match=r"hair_style: expected one of .*'bald'.*, got \['mohawk'\]"):
        render_faces(frontal(hair_style="mohawk"))
    with pytest.raises(ValueError, match=r"got none named \['yaw'\]"):
        render_faces(frontal().drop(columns="yaw"))
