"""Breast-ultrasound-like phantom images with lesion masks, for runs without any downloaded data.

An image is built the way a B-mode scan arises:

1. a map of echogenicity in decibels: skin, fat with lobules and septa, gland, muscle, lesion, dark
   regions that are not lesions (fat lobules, ducts), all with wavy borders;
2. attenuation, time-gain compensation, posterior shadow or enhancement, contact shadows;
3. fully developed speckle: complex Gaussian scatterers blurred by a point spread that is axially
   fine, laterally coarse and wider with depth, so that the envelope of uniform tissue is Rayleigh
   distributed (Wagner et al. 1983, "Statistics of speckle in ultrasound B-scans"); `looks`
   envelopes are averaged as in spatial compounding;
4. log compression to 8 bits.

Lengths are fractions of the image side, depth runs along axis 0. Shapes: maps are (H, W) float32.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Kind = Literal["benign", "malignant", "normal"]
Array = NDArray[np.float32]
Span = tuple[float, float]

REFERENCE_SIZE = 256
"""Side in pixels at which speckle widths are stated."""


class PhantomCase(NamedTuple):
    """One image with its lesion mask."""

    name: str
    image: NDArray[np.uint8]
    """(H, W), grey."""
    mask: NDArray[np.uint8]
    """(H, W), 0 or 255."""
    kind: Kind


@dataclass(frozen=True)
class Scanner:
    """How a scanner renders tissue; every range is sampled uniformly, once per image."""

    gain: Span
    """Mean level in dB below white."""
    dynamic_range: Span
    """dB from black to white."""
    attenuation: Span
    """dB lost from top to bottom after time-gain compensation."""
    axial: Span
    """Standard deviation of the axial point spread in pixels at 256 px."""
    lateral: Span
    """The same laterally, at the surface."""
    widening: Span
    """Lateral width at the bottom over that at the surface."""
    looks: tuple[int, int]
    """Envelopes averaged, fewest and most."""


SCANNERS: dict[str, Scanner] = {
    "a": Scanner(
        gain=(29.0, 17.0),
        dynamic_range=(40.0, 52.0),
        attenuation=(3.0, 20.0),
        axial=(0.55, 0.85),
        lateral=(0.9, 1.6),
        widening=(1.2, 2.2),
        looks=(3, 6),
    ),
    "b": Scanner(
        gain=(22.0, 13.0),
        dynamic_range=(44.0, 54.0),
        attenuation=(0.0, 12.0),
        axial=(0.7, 1.0),
        lateral=(1.4, 2.0),
        widening=(1.4, 2.4),
        looks=(1, 2),
    ),
}
"""Domain "b" is brighter than "a", its speckle is stronger (fewer looks) and wider."""


def phantom_case(index: int, seed: int = 2333, size: int = 256, domain: str = "a") -> PhantomCase:
    """Case `index` of the phantom data set: the same arguments give the same pixels.

    `size` is the side in pixels, at least 32; `domain` is a key of SCANNERS, else ValueError.
    About 5 % of the cases are normal (empty mask). One case takes about 0.05 s at 256 px.
    """
    if domain not in SCANNERS:
        raise ValueError(f"phantom domain {domain!r}: expected one of {', '.join(SCANNERS)}")
    if size < 32:
        raise ValueError(f"phantom size {size}: expected at least 32 pixels")
    rng = np.random.default_rng([seed, index, zlib.crc32(domain.encode())])
    draw = rng.random()
    kind: Kind = "normal" if draw < 0.05 else "benign" if draw < 0.58 else "malignant"
    image, mask = draw_phantom(rng, size, SCANNERS[domain], kind)
    return PhantomCase(f"phantom_{index:04d}", image, mask, kind)


def draw_phantom(
    rng: np.random.Generator, size: int, scanner: Scanner, kind: Kind
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W) in 0..255 and mask (H, W) in {0, 255} drawn from `rng`."""
    y, x = (a.astype(np.float32) / size for a in np.mgrid[0:size, 0:size])
    echo, layers = _tissue(rng, x, y)
    _add_decoys(rng, echo, x, y, layers)
    _add_shadows(rng, echo, x, y)
    mask = np.zeros((size, size), bool)
    if kind != "normal":
        mask = _add_lesion(rng, echo, x, y, kind)
    echo += _depth_gain(rng, size, scanner)[:, None]
    image = _render(rng, echo, scanner)
    return image, mask.astype(np.uint8) * 255


def smooth_noise(rng: np.random.Generator, size: int, cells_y: float, cells_x: float) -> Array:
    """Smooth Gaussian noise (size, size) of about unit variance with `cells_y` by `cells_x` cells."""
    grid = rng.standard_normal((round(cells_y) + 3, round(cells_x) + 3), np.float32)
    field = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return field * np.float32(1.25)


def speckle_envelope(
    rng: np.random.Generator, amplitude: Array, axial: float, lateral: float, widening: float
) -> Array:
    """Envelope (H, W) of complex scatterers weighted by `amplitude`; widths in pixels.

    Uniform amplitude 1 gives a Rayleigh envelope of mean square 1.
    """
    height, width = amplitude.shape
    scatterers = rng.standard_normal((height, width, 2), np.float32) * amplitude[..., None]
    bands = []
    for factor in (1.0, (1 + widening) / 2, widening):
        spread = lateral * factor
        band = cv2.GaussianBlur(
            scatterers, (0, 0), sigmaX=spread, sigmaY=axial, borderType=cv2.BORDER_REFLECT
        )
        bands.append(band * np.float32(np.sqrt(_energy(axial) * _energy(spread) / 2)))
    depth = np.linspace(0, 2, height, dtype=np.float32)
    weights = [np.clip(1 - np.abs(depth - i), 0, 1) for i in range(3)]
    # The bands come from the same scatterers, so a linear blend loses little energy between them.
    field = sum(w[:, None, None] * band for w, band in zip(weights, bands, strict=True))
    return np.sqrt(np.square(field).sum(axis=2))


def _energy(sigma: float) -> float:
    """Factor that restores unit variance to white noise blurred by a Gaussian of this width."""
    radius = int(np.ceil(4 * sigma)) + 1
    kernel = cv2.getGaussianKernel(2 * radius + 1, sigma)
    return float(1 / np.square(kernel).sum())


def _between(rng: np.random.Generator, span: Span) -> float:
    return float(span[0] + (span[1] - span[0]) * rng.random())


def _septa(
    rng: np.random.Generator, size: int, cells_y: float, cells_x: float, width: float
) -> Array:
    """Wavy bright curves in [0, 1]: zero crossings of smooth anisotropic noise, fading in places."""
    straight = smooth_noise(rng, size, cells_y, cells_x)
    tilt = smooth_noise(rng, size, 2, 2) * np.float32(size * 0.06)
    rows, columns = (a.astype(np.float32) for a in np.mgrid[0:size, 0:size])
    field = cv2.remap(
        straight, columns, rows + tilt, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    slope = np.abs(np.diff(field, axis=0, append=field[-1:])) + np.float32(0.3 * cells_y / size)
    line = np.exp(-np.square(field / (slope * np.float32(width * size / 256))))
    fade = np.clip(smooth_noise(rng, size, cells_y, cells_x * 1.5) * 0.8 + 0.35, 0, 1)
    return line * fade


def _tissue(rng: np.random.Generator, x: Array, y: Array) -> tuple[Array, tuple[float, float]]:
    """Echogenicity in dB, and the mean depths where gland and muscle begin."""
    size = x.shape[0]
    fat_end = _between(rng, (0.16, 0.38))
    gland_end = _between(rng, (0.58, 0.88))

    def border(depth: float, swing: float) -> Array:
        wave = smooth_noise(rng, size, 0, 4)[size // 2] + 0.4 * smooth_noise(rng, size, 0, 9)[0]
        return np.asarray(depth + swing * wave[None, :], np.float32)

    def below(edge: Array, softness: float) -> Array:
        return 1 / (1 + np.exp(-np.clip((y - edge) / np.float32(softness), -30, 30)))

    in_gland = below(border(fat_end, 0.035), 0.012)
    in_muscle = below(border(gland_end, 0.025), 0.010)
    in_fat = 1 - in_gland
    in_gland = in_gland * (1 - in_muscle)

    lobules = smooth_noise(rng, size, 7, 4)
    fibres = smooth_noise(rng, size, 26, 7)
    clumps = smooth_noise(rng, size, 6, 4)
    striae = _septa(rng, size, _between(rng, (16, 30)), 3, 1.4)
    fat = (
        -5.0
        + 1.5 * lobules
        + _between(rng, (9, 18)) * _septa(rng, size, _between(rng, (9, 16)), 1.5, 1.5)
    )
    gland = (
        _between(rng, (1, 5))
        + _between(rng, (1, 3)) * clumps
        + _between(rng, (1.5, 3.5)) * fibres
        + _between(rng, (7, 15)) * _septa(rng, size, _between(rng, (14, 28)), 4, 1.3)
        + _between(rng, (5, 11)) * _septa(rng, size, _between(rng, (28, 44)), 7, 1.0)
    )
    muscle = -4.0 + 2.0 * fibres + _between(rng, (7, 16)) * striae
    echo = in_fat * fat + in_gland * gland + in_muscle * muscle
    for edge, level in ((fat_end, 6.0), (gland_end, 10.0)):
        line = np.exp(-np.square((y - border(edge, 0.03)) / 0.006))
        echo += level * line * np.clip(0.5 + smooth_noise(rng, size, 1, 6), 0, 1.2)

    skin = border(_between(rng, (0.022, 0.05)), 0.004)
    echo += 9.0 * np.exp(-np.square((y - skin) / 0.006)) + 7.0 * np.exp(-np.square(y / 0.008))
    return echo.astype(np.float32), (fat_end, gland_end)


def _ellipse_level(
    x: Array, y: Array, centre: tuple[float, float], radii: tuple[float, float], angle: float
) -> tuple[Array, Array]:
    """Normalised radius (1 on the ellipse) and polar angle of every pixel."""
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / radii[0]
    v = (-dx * np.sin(angle) + dy * np.cos(angle)) / radii[1]
    return np.hypot(u, v).astype(np.float32), np.arctan2(v, u).astype(np.float32)


def _add_decoys(
    rng: np.random.Generator, echo: Array, x: Array, y: Array, layers: tuple[float, float]
) -> None:
    """Dark regions that are not lesions: flat fat lobules with a bright border, thin ducts."""
    fat_end, gland_end = layers
    for _ in range(rng.integers(1, 4)):
        depth = _between(rng, (0.09, gland_end))
        width = _between(rng, (0.07, 0.17))
        radii = (width, width * _between(rng, (0.20, 0.34)))
        level, _ = _ellipse_level(
            x, y, (rng.random(), depth), radii, 0.25 * float(rng.standard_normal())
        )
        inside = 1 / (1 + np.exp(np.clip((level - 1) * 9, -30, 30)))
        target = np.float32(_between(rng, (-11, -5)))
        echo += inside * (target - echo) * np.float32(0.85)
        echo += _between(rng, (4, 10)) * np.exp(-np.square((level - 1.12) / 0.09))
    for _ in range(rng.integers(0, 4)):
        centre = (rng.random(), _between(rng, (fat_end, gland_end)))
        width = _between(rng, (0.025, 0.07))
        radii = (width, _between(rng, (0.008, 0.014)))
        level, _ = _ellipse_level(x, y, centre, radii, 0.4 * float(rng.standard_normal()))
        echo -= 18.0 * (level < 1)
        echo += 6.0 * np.exp(-np.square((level - 1.3) / 0.2))


def _add_shadows(rng: np.random.Generator, echo: Array, x: Array, y: Array) -> None:
    """Darker columns from poor contact or superficial calcification, and lateral falloff."""
    for _ in range(rng.integers(0, 4)):
        start = _between(rng, (-0.1, 0.7))
        centre = rng.random() + 0.06 * float(rng.standard_normal()) * (y - start)
        width = _between(rng, (0.03, 0.12)) * (1 + 0.5 * np.clip(y - start, 0, 1))
        column = np.exp(-np.square((x - centre) / width))
        onset = 1 / (1 + np.exp(-np.clip((y - start) / 0.05, -30, 30)))
        echo -= _between(rng, (4, 16)) * column * onset
    if rng.random() < 0.5:
        edge = x if rng.random() < 0.5 else 1 - x
        echo -= _between(rng, (3, 14)) * np.exp(-np.square(edge / _between(rng, (0.08, 0.25))))


def _contour(rng: np.random.Generator, theta: Array, kind: Kind) -> Array:
    """Radius over the ellipse's as a function of the polar angle."""
    harmonics = range(2, 5) if kind == "benign" else range(2, 14)
    strength = 0.05 if kind == "benign" else _between(rng, (0.08, 0.15))
    turns = np.linspace(-np.pi, np.pi, 1025)
    radius = np.ones_like(turns)
    for n in harmonics:
        amount = strength * float(rng.standard_normal()) / n**0.5
        radius += amount * np.cos(n * turns + 2 * np.pi * rng.random())
    if kind == "malignant":
        for _ in range(rng.integers(4, 13)):
            away = np.angle(np.exp(1j * (turns - 2 * np.pi * rng.random())))
            spike = _between(rng, (0.10, 0.32))
            radius += spike * np.exp(-np.abs(away) / _between(rng, (0.10, 0.22)))
    return np.interp(theta, turns, np.clip(radius, 0.45, 1.9)).astype(np.float32)


def _add_lesion(
    rng: np.random.Generator, echo: Array, x: Array, y: Array, kind: Kind
) -> NDArray[np.bool_]:
    """Draw the lesion and what lies behind it into `echo`; return its mask."""
    size = x.shape[0]
    small = rng.random() < 0.15
    radius = _between(rng, (0.07, 0.10)) if small else _between(rng, (0.10, 0.23))
    aspect = _between(rng, (0.55, 0.9)) if kind == "benign" else _between(rng, (0.75, 1.35))
    centre_x = _between(rng, (0.18, 0.82))
    centre_y = max(_between(rng, (0.2, 0.68)), radius * aspect + 0.08)
    tilt = 0.25 * float(rng.standard_normal())
    radii = (radius, radius * aspect)
    level, theta = _ellipse_level(x, y, (centre_x, centre_y), radii, tilt)
    level = level / _contour(rng, theta, kind)
    mask = level < 1

    softness = 0.05 if kind == "benign" else _between(rng, (0.06, 0.16))
    inside = 1 / (1 + np.exp(np.clip((level - 1) / np.float32(softness), -30, 30)))
    cyst = kind == "benign" and rng.random() < 0.25
    surroundings = float(np.median(echo[(level > 1.1) & (level < 1.8)], axis=None))
    drop = _between(rng, (18, 26)) if cyst else _between(rng, (12, 19))
    texture = smooth_noise(rng, size, 18, 12) * (0.5 if cyst else _between(rng, (0.8, 2.2)))
    echo += inside * (surroundings - drop + texture - echo)
    if not cyst and rng.random() < 0.3:
        foci = smooth_noise(rng, size, 60, 45) > 2.3
        echo += 14.0 * (foci & (level < 0.8))

    if kind == "benign":
        echo += _between(rng, (3, 9)) * np.exp(-np.square((level - 1.08) / 0.06))
    else:
        echo += _between(rng, (0, 5)) * np.exp(-np.square((level - 1.3) / 0.15))

    half = radius * (0.9 if kind == "benign" else 1.0)
    offset = np.abs(x - np.float32(centre_x)) / np.float32(half)
    column = 1 / (1 + np.exp(np.clip((offset - 0.85) / 0.10, -30, 30)))
    behind = 1 / (1 + np.exp(-np.clip((y - centre_y) / 0.03, -30, 30))) * (1 - inside)
    reach = np.exp(-np.clip(y - centre_y - radii[1], 0, 1) / _between(rng, (0.2, 0.8)))
    if kind == "benign":
        echo += _between(rng, (2, 9)) * column * behind * reach * (rng.random() < 0.75)
        edges = np.exp(-np.square((offset - 1.0) / 0.10))
        echo -= _between(rng, (0, 5)) * edges * behind * reach
    else:
        echo -= _between(rng, (3, 9)) * column * behind * reach * (rng.random() < 0.8)
    return mask


def _depth_gain(rng: np.random.Generator, size: int, scanner: Scanner) -> Array:
    """Level in dB by depth (H,): gain, attenuation left over, ripples of the gain sliders."""
    depth = np.linspace(0, 1, size, dtype=np.float32)
    loss = _between(rng, scanner.attenuation) * depth ** _between(rng, (1.0, 2.5))
    sliders = np.interp(depth, np.linspace(0, 1, 7), rng.standard_normal(7))
    return (1.5 * sliders - loss - _between(rng, scanner.gain)).astype(np.float32)


def _render(rng: np.random.Generator, echo: Array, scanner: Scanner) -> NDArray[np.uint8]:
    """Speckle, compounding and log compression of an echogenicity map in dB below white."""
    scale = echo.shape[0] / REFERENCE_SIZE
    axial = _between(rng, scanner.axial) * scale
    lateral = _between(rng, scanner.lateral) * scale
    widening = _between(rng, scanner.widening)
    amplitude = np.power(np.float32(10), echo / 20)
    looks = int(rng.integers(scanner.looks[0], scanner.looks[1] + 1))
    envelope = np.zeros_like(echo)
    for _ in range(looks):
        envelope += speckle_envelope(rng, amplitude, axial, lateral, widening)
    dynamic_range = _between(rng, scanner.dynamic_range)
    noise_floor = 10 ** (-dynamic_range / 20)
    decibels = 20 * np.log10(envelope / looks + np.float32(noise_floor))
    return np.clip(255 * (1 + decibels / dynamic_range), 0, 255).astype(np.uint8)
