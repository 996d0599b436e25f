"""Procedural frontal faces whose every attribute is known: pictures on which a causal claim can be checked exactly.

Coordinates are the frame's: x to the right and y down, the frame spans [-1, 1] on both axes, as in a tight crop
(forehead to chin). Colours are display values in [0, 1] until the last step, which maps them to [-1, 1].
Attributes are drawn independently of each other, so any correlation a model shows between two of them is its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32

Colour = Literal["gray", "rgb"]
PARTS = ("skin", "hair", "eyes", "brows", "nose", "mouth", "glasses", "background")

_TOP_FIRST = ("glasses", "eyes", "brows", "mouth", "nose", "hair", "skin", "background")
_LUMINANCE = np.array([[0.299], [0.587], [0.114]])  # Rec. 601 weights of R, G, B
_SAMPLES_PER_CHUNK = 1 << 18  # one float32 plane of a chunk is 1 MiB, which stays in a core's cache
_SAMPLED_SIDE = 64  # smaller pictures are rendered at least this large, then averaged
_HEAD_RADIUS = 1.1  # of the cylinder on which the features sit; frame units

_RANGES = {
    "yaw": (-0.26, 0.26),  # radians; positive turns the face to the right of the picture
    "roll": (-0.14, 0.14),  # radians; positive is clockwise
    "shift_x": (-0.06, 0.06),  # frame units, as every length below
    "shift_y": (-0.05, 0.05),
    "scale": (0.94, 1.06),  # of the whole head
    "face_width": (0.9, 1.06),  # factor
    "jaw": (0.54, 0.68),  # half width
    "skin_tone": (0.0, 1.0),  # 0 darkest, 1 lightest
    "hairline": (-0.07, 0.07),  # shift; positive is a lower hairline
    "eye_size": (0.85, 1.2),  # factor
    "eye_spacing": (0.33, 0.41),  # half the distance between the pupils
    "gaze_x": (-1.0, 1.0),  # positive looks to the right of the picture
    "gaze_y": (-1.0, 1.0),  # positive looks down
    "brow_thickness": (0.04, 0.07),  # half thickness
    "brow_angle": (-0.35, 0.35),  # slope; positive raises the outer ends (angry), negative drops them (sad)
    "nose_length": (0.85, 1.15),  # factor
    "nose_width": (0.12, 0.2),  # half width at the nostrils
    "mouth_width": (0.22, 0.34),  # half width
    "mouth_smile": (-1.0, 1.0),  # positive raises the corners
    "glasses_thickness": (0.045, 0.085),  # of the frame; acts only where `glasses` is true
    "glasses_luminance": (0.03, 0.3),  # likewise
    "beard_density": (0.55, 0.95),  # opacity; acts only where `beard` is true
    "light_azimuth": (-1.3, 1.3),  # radians; positive is light from the right of the picture
    "light_elevation": (0.0, 0.8),  # radians above the horizon
    "light_strength": (0.1, 1.0),
    "background_luminance": (0.05, 0.9),
    "background_tint": (-1.0, 1.0),  # positive is warm, negative is cool
    "clothes_luminance": (0.05, 0.9),
    "texture_phase": (0.0, 2 * np.pi),  # of hair strands and of the background's gradient and texture
}
_PEAKED = ("yaw", "roll", "shift_x", "shift_y", "scale", "gaze_x", "gaze_y", "brow_angle")  # triangular, not uniform

# hairline at the middle, its tilt, its curve, how far it drops at the temples, volume, lower end behind the head, waves
_HAIR_STYLES = {
    "bald": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "short": (-0.74, 0.0, 0.15, 0.5, 0.05, -0.1, 0.005),
    "parted": (-0.72, 0.28, 0.2, 0.6, 0.09, 0.0, 0.01),
    "fringe": (-0.61, 0.05, 0.05, 0.7, 0.1, 0.35, 0.02),
    "curly": (-0.68, 0.0, 0.2, 0.65, 0.2, 0.25, 0.06),
    "long": (-0.84, 0.06, 0.5, 1.7, 0.17, 3.0, 0.015),
}
_HAIR_COLOURS = {
    "black": (0.09, 0.08, 0.08),
    "brown": (0.30, 0.20, 0.13),
    "auburn": (0.48, 0.25, 0.14),
    "blond": (0.80, 0.66, 0.40),
    "grey": (0.58, 0.58, 0.59),
    "white": (0.88, 0.87, 0.85),
}
_EYE_COLOURS = {"brown": (0.26, 0.15, 0.1), "green": (0.3, 0.4, 0.2), "blue": (0.25, 0.4, 0.6), "grey": (0.4, 0.5, 0.5)}
_CHOICES: dict[str, tuple[str, ...]] = {
    "hair_style": tuple(_HAIR_STYLES),
    "hair_colour": tuple(_HAIR_COLOURS),
    "eye_colour": tuple(_EYE_COLOURS),
    "background": ("plain", "gradient", "texture"),
}
_CHANCES = {"glasses": 0.3, "beard": 0.25}
_SKIN_TONES = np.array([(0.40, 0.27, 0.20), (0.66, 0.47, 0.36), (0.86, 0.68, 0.56), (0.98, 0.84, 0.75)])


@dataclass(frozen=True)
class SyntheticFaces:
    """Faces, what was drawn, and where.

    `images` are in [-1, 1]; `attributes` has one row per image, its index is the face index; `parts` follows `PARTS`
    and gives every pixel to exactly one part. A beard is hair, neck and ears are skin, clothes are background.
    """

    images: Float32[np.ndarray, "n c size size"]
    attributes: pd.DataFrame
    parts: Bool[np.ndarray, "n 8 size size"]


def synthetic_faces(
    indices: Sequence[int] | range, *, size: int = 32, colour: Colour = "gray", seed: int = 0
) -> SyntheticFaces:
    """Faces number `indices` of the endless series `seed`; face i is the same in every call, whatever its neighbours.

    Raises ValueError for a negative index or seed, size < 8, or an unknown colour.
    """
    return render_faces(face_attributes(indices, seed=seed), size=size, colour=colour)


def face_attributes(indices: Sequence[int] | range, *, seed: int = 0) -> pd.DataFrame:
    """Attributes of the faces `indices`, one row each. Edit a column and render again for a counterfactual face."""
    if seed < 0:
        raise ValueError(f"seed: expected >= 0, got {seed}")
    if bad := [i for i in indices if i < 0]:
        raise ValueError(f"indices: expected all >= 0, got {bad[0]}")
    names = [*_RANGES, *_CHOICES, "mouth_open", *_CHANCES]
    # A generator per face: what a face looks like cannot depend on which others are asked for.
    generators = [np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, i]))) for i in indices]
    draws = np.array([g.random((len(names), 2)) for g in generators]).reshape(-1, len(names), 2)
    columns: dict[str, np.ndarray] = {}
    for k, name in enumerate(names):
        first, both = draws[:, k, 0], draws[:, k].mean(axis=1)
        if name in _RANGES:
            low, high = _RANGES[name]
            columns[name] = low + (high - low) * (both if name in _PEAKED else first)
        elif name in _CHOICES:
            options = np.array(_CHOICES[name], dtype=object)
            columns[name] = options[(first * len(options)).astype(int)]
        elif name == "mouth_open":  # half of the mouths are closed: exactly 0, else up to 1
            columns[name] = np.maximum(2 * first - 1, 0)
        else:
            columns[name] = first < _CHANCES[name]
    return pd.DataFrame(columns, index=pd.Index(list(indices), name="face", dtype=np.int64))


def render_faces(attributes: pd.DataFrame, *, size: int = 32, colour: Colour = "gray") -> SyntheticFaces:
    """Draw the faces that `attributes` (columns as from `face_attributes`) describe.

    Raises ValueError for size < 8, an unknown colour, missing columns or an unknown choice.
    """
    if size < 8:
        raise ValueError(f"size: expected >= 8, got {size}")
    if colour not in ("gray", "rgb"):
        raise ValueError(f"colour: expected 'gray' or 'rgb', got {colour!r}")
    if missing := {*_RANGES, *_CHOICES, "mouth_open", *_CHANCES} - set(attributes.columns):
        raise ValueError(f"attributes: expected every column of face_attributes, got none named {sorted(missing)}")
    for name, options in _CHOICES.items():
        if unknown := set(attributes[name]) - set(options):
            raise ValueError(f"{name}: expected one of {options}, got {sorted(map(str, unknown))}")
    n, channels = len(attributes), 1 if colour == "gray" else 3
    images = np.empty((n, channels, size, size), dtype=np.float32)
    parts = np.empty((n, len(PARTS), size, size), dtype=bool)
    factor = -(-_SAMPLED_SIDE // size)
    step = max(1, _SAMPLES_PER_CHUNK // (size * factor) ** 2)
    for start in range(0, n, step):
        canvas = _Canvas(attributes.iloc[start : start + step], size * factor, channels)
        images[start : start + step] = 2 * np.clip(_shrink(canvas.image, factor), 0, 1).swapaxes(0, 1) - 1
        parts[start : start + step] = canvas.parts(factor)
    return SyntheticFaces(images=images, attributes=attributes, parts=parts)


class _Canvas:
    """One chunk of faces, painted bottom layer first; planes are [n, side, side]."""

    def __init__(self, attributes: pd.DataFrame, side: int, channels: int) -> None:
        self.a = {c: attributes[c].to_numpy(np.float32)[:, None, None] for c in (*_RANGES, "mouth_open", *_CHANCES)}
        self.names = {c: attributes[c].to_numpy() for c in _CHOICES}
        styles = np.array([_HAIR_STYLES[s] for s in self.names["hair_style"]], dtype=np.float32)
        self.hair_style = [column[:, None, None] for column in styles.T]
        self.n, self.channels, self.pixel = len(attributes), channels, np.float32(2 / side)
        self.image = np.zeros((channels, self.n, side, side), dtype=np.float32)
        self.layers: list[tuple[str, np.ndarray]] = []
        self.place(side)
        self.light()
        self.draw_background()
        self.draw_head()
        self.draw_mouth()
        self.draw_eyes()
        self.draw_brows()
        self.draw_hair()
        self.draw_glasses()

    def place(self, side: int) -> None:
        """Coordinates of frame (x, y), head (u, v) and face surface (f, v); f is arc length from the face's middle."""
        a, ticks = self.a, ((np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1)
        self.x, self.y = ticks[None, None, :], ticks[None, :, None]
        dx, dy = self.x - a["shift_x"], self.y - a["shift_y"]
        cos, sin = np.cos(a["roll"]) / a["scale"], np.sin(a["roll"]) / a["scale"]
        self.u = (cos * dx + sin * dy) / a["face_width"] - 0.12 * a["yaw"]
        self.v = cos * dy - sin * dx
        # On a cylinder the far half of a turned face is foreshortened, the near half widened.
        self.f = _HEAD_RADIUS * (np.arcsin(np.clip(self.u / _HEAD_RADIUS, -0.95, 0.95)) - a["yaw"])
        self.m = np.abs(self.f)
        self.tip = -0.24 + 0.46 * a["nose_length"]  # v of the nose's tip
        along = np.clip((self.v + 0.3) / (self.tip + 0.3), 0, 1.1)  # 0 at the nose's root, 1 at its tip
        self.nose_f = self.f - 0.25 * a["yaw"] * along  # the tip stands out, so a turn moves it further
        self.nose_half_width = 0.07 + (a["nose_width"] - 0.07) * along**2
        skull = _ellipse(self.u, self.v + 0.2, 0.77, 1.0)
        jaw = _ellipse(self.u, self.v - 0.2, a["jaw"] + 0.08, 0.77)
        self.head = _soft_minimum(skull, jaw, 0.12)

    def light(self) -> None:
        """Shading of the head: Lambert on an ellipsoid with bumps, a frontal fill light, and soft creases."""
        a = self.a
        nx, ny = self.u / 0.95, (self.v + 0.05) / 1.7
        nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.06))
        side = np.clip(self.f / 0.1, -1, 1)  # a sign without a seam down the middle of the face
        for across, sign, centre_v, width, height, amplitude in (
            (self.m - 0.44, side, 0.22, 0.26, 0.22, 0.08),  # cheeks
            (self.f, 1, -0.46, 0.5, 0.11, 0.045),  # brow ridge
            (self.m - a["eye_spacing"], side, -0.23, 0.2, 0.13, -0.05),  # eye sockets
            (self.f, 1, 0.84, 0.2, 0.15, 0.06),  # chin
            (self.f, 1, 0.52, 0.34, 0.2, 0.05),  # muzzle
            (self.nose_f, 1, self.tip - 0.22, 0.09, 0.26, 0.075),  # ridge of the nose
            (self.nose_f, 1, self.tip - 0.03, 0.75 * a["nose_width"], 0.1, 0.08),  # its tip
        ):
            df, dv = across / width, (self.v - centre_v) / height
            slope = 2 * amplitude * np.exp(-df * df - dv * dv)
            nx += sign * slope * df / width  # minus the height's gradient, as the ellipsoid's own normal is
            ny += slope * dv / height
        norm = 1 / np.sqrt(nx * nx + ny * ny + nz * nz)
        azimuth, elevation = a["light_azimuth"], a["light_elevation"]
        key = np.cos(elevation) * (np.sin(azimuth) * nx + np.cos(azimuth) * nz) - np.sin(elevation) * ny
        fill = 0.93 * nz - 0.36 * ny
        lit = np.maximum(key * norm, -0.25) - 0.55  # about zero on average: strength changes contrast, not exposure
        shade = 0.36 + 0.66 * fill * norm + 0.6 * a["light_strength"] * lit
        self.shade = np.maximum(shade, 0.1) * self.creases()

    def creases(self) -> np.ndarray:
        """Darkening in (0, 1] where little light gets in whatever its direction."""
        a, smile = self.a, np.maximum(self.a["mouth_smile"], 0)
        fold = self.m - (0.2 + 0.42 * np.maximum(self.v - 0.15, 0))
        factor = 1 - (0.08 + 0.2 * smile) * _spot(fold, self.v - 0.34, 0.045, 0.16)  # from nose to mouth corners
        factor *= 1 - 0.3 * _spot(self.m - a["eye_spacing"] + 0.02, self.v + 0.27, 0.22, 0.1)  # sockets
        factor *= 1 - 0.35 * _spot(self.nose_f, self.v - self.tip - 0.07, 0.14, 0.045)  # under the nose
        return factor * (1 - 0.22 * _spot(self.f, self.v - 0.67 - 0.08 * a["mouth_open"], 0.18, 0.05))  # under the lip

    def paint(self, part: str, alpha: np.ndarray, colour: np.ndarray, shade: np.ndarray | float = 1.0) -> None:
        """Lay `colour` [3, n or 1] (display values) times `shade` over the picture with opacity `alpha`."""
        values = (_LUMINANCE * colour).sum(axis=0, keepdims=True) if self.channels == 1 else colour
        for plane, value in zip(self.image, values.astype(np.float32), strict=True):
            plane += alpha * (value[:, None, None] * shade - plane)
        self.layers.append((part, alpha))

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Share of the pixel that lies inside (distance < 0), exact for a straight edge along an axis."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)

    def draw_background(self) -> None:
        a, kind = self.a, self.names["background"][:, None, None]
        phase = a["texture_phase"]
        slope = 0.3 * (np.cos(phase) * self.x + np.sin(phase) * self.y)
        waves = np.sin(5 * self.x + 3 * self.y + phase) + np.sin(4 * self.y - 7 * self.x + 2 * phase)
        pattern = np.where(kind == "gradient", slope, np.where(kind == "texture", 0.12 * waves, 0)).astype(np.float32)
        colour = a["background_luminance"].ravel() + [[0.07], [0.0], [-0.07]] * a["background_tint"].ravel()
        self.paint("background", np.ones_like(self.u), colour, 1 + pattern)
        clothes = self.cover(_ellipse(self.u, self.v - 1.6, 1.5, 0.78))
        self.paint("background", clothes, np.repeat(a["clothes_luminance"].reshape(1, -1), 3, 0), 0.9)

    def skin(self) -> np.ndarray:
        tone = self.a["skin_tone"].ravel() * (len(_SKIN_TONES) - 1)
        return np.stack([np.interp(tone, np.arange(len(_SKIN_TONES)), channel) for channel in _SKIN_TONES.T])

    def hair(self) -> np.ndarray:
        return np.array([_HAIR_COLOURS[c] for c in self.names["hair_colour"]]).T

    def strands(self) -> np.ndarray:
        phase = self.a["texture_phase"]
        bend = self.f + 0.35 * np.sin(2.2 * self.v + phase)
        return 1 + 0.14 * np.sin(17 * bend + 3 * self.v + phase) + 0.10 * np.sin(29 * bend - 5 * self.v + 2 * phase)

    def draw_head(self) -> None:
        """Hair behind the head, neck, ears, the face itself with its beard, and the nose."""
        a, skin = self.a, self.skin()
        _, _, _, _, volume, lower_end, waves = self.hair_style
        self.waves = waves * np.sin(9 * self.u + a["texture_phase"]) * np.sin(8 * self.v + 2 * a["texture_phase"])
        behind = _ellipse(self.u, np.minimum(self.v + 0.2, 0), 0.77 + volume, 1.0 + volume) + self.waves
        self.grown = (self.names["hair_style"] != "bald").astype(np.float32)[:, None, None]
        hair_behind = self.grown * self.cover(-_soft_minimum(-behind, lower_end - self.v, 0.4))
        neck = np.maximum(np.abs(self.u) - 0.5, 0.5 - self.v)
        self.paint("skin", self.cover(neck), skin, 0.55 * self.shade + 0.05)
        self.paint("hair", hair_behind, self.hair(), (0.45 + 0.3 * self.shade) * self.strands())
        ears = _ellipse(np.abs(self.u) - 0.77, self.v + 0.08, 0.09, 0.2)
        self.paint("skin", self.cover(ears), skin, 0.8 * self.shade)
        self.paint("skin", self.cover(self.head), skin, self.shade)
        cheek = self.m - 0.28 - 0.65 * np.maximum(0.66 - self.v, 0)  # the beard climbs along the jaw to the ears
        moustache = np.maximum(self.m - a["mouth_width"] - 0.06, np.abs(self.v - self.tip - 0.16) - 0.075)
        beard = np.minimum(np.minimum(np.maximum(-cheek, 0.1 - self.v), moustache), 0.62 - self.v)
        soft = np.clip(0.5 - beard / 0.1, 0, 1) * self.cover(self.head)
        self.paint("hair", a["beard"] * a["beard_density"] * soft, 0.85 * self.hair(), self.shade * self.strands())
        length = np.abs(self.v - self.tip / 2 + 0.08) - self.tip / 2 - 0.16
        nose = self.cover(np.maximum(np.abs(self.nose_f) - self.nose_half_width, length))
        self.paint("nose", nose, skin, self.shade)  # the skin's own colour: what shows a nose is its shading
        nostrils = _ellipse(np.abs(self.nose_f) - 0.55 * a["nose_width"], self.v - self.tip - 0.035, 0.05, 0.025)
        self.paint("nose", 0.75 * self.cover(nostrils), 0.3 * skin, self.shade)

    def draw_mouth(self) -> None:
        a = self.a
        across = self.f / a["mouth_width"]
        bow = np.maximum(1 - across * across, 0)
        line = self.v - 0.52 + 0.16 * a["mouth_smile"] * (np.minimum(across * across, 1.5) - 0.4)
        gap = 0.12 * a["mouth_open"] * bow
        line = line - 0.7 * gap  # a jaw that opens moves the lower lip most
        lips = np.maximum(np.abs(line) - gap - 0.06 * np.sqrt(bow) - 0.012, self.m - a["mouth_width"])
        red = np.array([[0.8], [0.58], [0.59]])
        self.paint("mouth", self.cover(lips), red * self.skin(), self.shade * np.where(line < 0, 0.85, 1.05))
        inside = self.cover(np.maximum(np.abs(line) - gap - 0.016 * bow, self.m - a["mouth_width"]))
        self.paint("mouth", 0.85 * inside, np.array([[0.22], [0.07], [0.07]]), self.shade)
        teeth = np.maximum(np.maximum(line + 0.25 * gap, -line - gap), self.m - 0.85 * a["mouth_width"])
        visible = np.clip(4 * a["mouth_open"], 0, 1)
        self.paint("mouth", visible * self.cover(teeth), np.array([[0.9], [0.88], [0.84]]), self.shade)

    def draw_eyes(self) -> None:
        a = self.a
        du, dv, half_width = self.m - a["eye_spacing"], self.v + 0.22, 0.165 * a["eye_size"]
        arch = 0.078 * a["eye_size"] * (1 - (du / half_width) ** 2)
        white = self.cover(0.85 * (np.abs(dv) - arch))
        self.paint("eyes", white, np.array([[0.88], [0.86], [0.84]]), 0.95 * self.shade)
        toward_x = du * np.sign(self.f) - 0.06 * a["gaze_x"]
        centre = np.hypot(toward_x, dv - 0.03 * a["gaze_y"])
        iris = np.array([_EYE_COLOURS[c] for c in self.names["eye_colour"]]).T
        self.paint("eyes", white * self.cover(centre - 0.08 * a["eye_size"]), iris, self.shade)
        self.paint("eyes", white * self.cover(centre - 0.04 * a["eye_size"]), np.full((3, 1), 0.03))
        glint = self.cover(np.hypot(toward_x + 0.03, dv - 0.03 * a["gaze_y"] + 0.03) - 0.02)
        self.paint("eyes", 0.7 * white * glint, np.ones((3, 1)))
        lash = np.maximum(np.abs(dv + np.maximum(arch, -0.02)) - 0.02, np.abs(du) - 1.08 * half_width)
        self.paint("eyes", 0.8 * self.cover(lash), 0.2 * self.skin(), self.shade)

    def draw_brows(self) -> None:
        a = self.a
        du = self.m - a["eye_spacing"]
        middle = -0.46 - a["brow_angle"] * du + 1.2 * du * du
        taper = np.clip(1.15 - 2.2 * np.maximum(du, 0), 0.3, 1)
        brow = np.maximum(np.abs(self.v - middle) - a["brow_thickness"] * taper, np.abs(du - 0.01) - 0.21)
        self.paint("brows", 0.95 * self.cover(brow), 0.65 * self.hair(), self.shade)

    def draw_hair(self) -> None:
        """The hair in front: everything of the head, and of the volume around it, above the hairline."""
        a = self.a
        middle, tilt, curve, temples, volume, _, _ = self.hair_style
        rise = np.clip((self.m - 0.58) / 0.25, 0, 1)
        hairline = middle + a["hairline"] + tilt * self.f + curve * self.m**2 + temples * rise * rise * (3 - 2 * rise)
        front = -_soft_minimum(0.7 * (hairline + 2 * self.waves - self.v), volume - self.waves - self.head, 0.12)
        gloss = 0.25 * _spot(self.u - 0.5 * np.sin(a["light_azimuth"]), self.v + 0.85, 0.4, 0.12)
        self.paint("hair", self.grown * self.cover(front), self.hair(), (self.shade + gloss) * self.strands())

    def draw_glasses(self) -> None:
        a = self.a
        half = a["glasses_thickness"] / 2
        du, dv = self.m - a["eye_spacing"] - 0.01, self.v + 0.18
        rim = _rounded_box(du, dv, 0.26, 0.17, 0.12)
        ring = self.cover(rim - half) - self.cover(rim + half)
        bridge = self.cover(np.maximum(np.abs(dv + 0.06) - half, self.m - a["eye_spacing"] + 0.26))
        reach = np.maximum(a["eye_spacing"] + 0.27 - self.m, np.abs(self.u) - 0.79)  # from the rim to the ear
        temples = self.cover(np.maximum(np.abs(dv + 0.08) - half, reach))
        frame = a["glasses"] * np.maximum(np.maximum(ring, bridge), temples)
        self.paint("glasses", frame, np.repeat(a["glasses_luminance"].reshape(1, -1), 3, 0))

    def parts(self, factor: int) -> Bool[np.ndarray, "n 8 size size"]:
        """For every pixel the part with the largest visible share of it; among equals the top-most."""
        shares = dict.fromkeys(_TOP_FIRST, np.zeros((), dtype=np.float32))
        unseen = np.ones_like(self.u)
        for part, alpha in reversed(self.layers):
            visible = unseen * alpha
            shares[part] = shares[part] + visible
            unseen = unseen - visible
        stacked = np.stack([_shrink(shares[part], factor) for part in _TOP_FIRST])
        winner = np.array([PARTS.index(part) for part in _TOP_FIRST])[stacked.argmax(axis=0)]
        return winner[:, None] == np.arange(len(PARTS))[None, :, None, None]


def _shrink(planes: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of factor x factor pixels of the last two axes."""
    *lead, height, width = planes.shape
    return planes.reshape(*lead, height // factor, factor, width // factor, factor).mean(axis=(-3, -1))


def _ellipse(x: np.ndarray, y: np.ndarray, a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """Approximate signed distance to the ellipse of half axes (a, b): exact to first order at its edge."""
    level = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    return level * (level - 1) / np.maximum(np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2), 1e-6)


def _rounded_box(x: np.ndarray, y: np.ndarray, half_x: float, half_y: float, corner: float) -> np.ndarray:
    """Signed distance to a box with rounded corners."""
    dx, dy = np.abs(x) - half_x + corner, np.abs(y) - half_y + corner
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


def _soft_minimum(first: np.ndarray, second: np.ndarray, blend: float) -> np.ndarray:
    """Union of two signed distances, its seam rounded over the length `blend`; negate all three to intersect."""
    overlap = np.maximum(blend - np.abs(first - second), 0) / blend
    return np.minimum(first, second) - overlap * overlap * blend / 4


def _spot(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    """Gaussian bell of height 1."""
    return np.exp(-((x / width) ** 2) - (y / height) ** 2)
