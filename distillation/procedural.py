"""Procedural images to distil an autoencoder from: no photograph and no scan takes part.

Five families, mixed by `MIXTURE`:

- phantom: crops of ultrasound phantoms with random contrast, scanner, zoom and compression;
- leaves: dead leaves (Lee, Mumford, Huang 2001) of circles, ellipses and polygons, grey or colour;
- speckle: plain speckle and filtered noise of many scales, contrasts and orientations;
- mask: binary blobs, from empty to full, as masks are fed to the encoder;
- overlay: scanner text, callipers and black margins over one of the grey families.

Images are uint8 RGB, (size, size, 3).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.phantom import SCANNERS, Kind, draw_phantom, smooth_noise, speckle_envelope

Image = NDArray[np.uint8]

MIXTURE: dict[str, float] = {
    "phantom": 0.46,
    "leaves": 0.16,
    "speckle": 0.12,
    "mask": 0.17,
    "overlay": 0.09,
}
"""Share of each family."""


def procedural_crops(seed: int, count: int, size: int = 64) -> Image:
    """`count` crops (count, size, size, 3), uint8, the same for the same arguments.

    Each scene of 224 px is cut into several crops, so that a crop of a phantom costs only a few
    milliseconds. The crops are shuffled.
    """
    rng = np.random.default_rng([seed, size])
    cuts = min(8, max(1, round(8 * (64 / size) ** 2)))
    names, shares = list(MIXTURE), np.array(list(MIXTURE.values()))
    crops: list[Image] = []
    while len(crops) < count:
        family = names[rng.choice(len(names), p=shares / shares.sum())]
        crops.extend(_cut(rng, scene(rng, family), size, cuts))
    order = rng.permutation(len(crops))[:count]
    return np.stack([crops[i] for i in order])


def scene(rng: np.random.Generator, family: str, size: int = 224) -> Image:
    """One image (size, size, 3) of a family named in MIXTURE, else ValueError."""
    if family == "mask":
        return _mask_scene(rng, size)
    if family == "leaves":
        return _degrade(rng, _leaves_scene(rng, size))
    if family == "speckle":
        return _degrade(rng, _grey(_speckle_scene(rng, size)))
    if family == "phantom":
        return _degrade(rng, _grey(_phantom_scene(rng, size)))
    if family == "overlay":
        draw = _phantom_scene if rng.random() < 0.8 else _speckle_scene
        return _degrade(rng, _grey(_annotate(rng, draw(rng, size))))
    raise ValueError(f"procedural family {family!r}: expected one of {', '.join(MIXTURE)}")


def _cut(rng: np.random.Generator, image: Image, size: int, count: int) -> list[Image]:
    """Random crops, each flipped at random (left to right alone: depth has a direction)."""
    side = image.shape[0]
    if size > side:
        raise ValueError(f"crop size {size}: expected at most {side} pixels")
    crops = []
    for _ in range(count):
        top, left = rng.integers(0, side - size + 1, 2)
        crop = image[top : top + size, left : left + size]
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return crops


def _grey(image: Image) -> Image:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB).astype(np.uint8, copy=False)


def _phantom_scene(rng: np.random.Generator, size: int) -> Image:
    """A phantom drawn larger or smaller than needed, scaled, with a random transfer curve."""
    kinds: tuple[Kind, ...] = ("normal", "benign", "malignant")
    scanner = SCANNERS["a" if rng.random() < 0.85 else "b"]
    height = int(rng.integers(200, 420))
    image, _ = draw_phantom(rng, height, scanner, kinds[rng.integers(3)])
    if rng.random() < 0.7:
        # A clinical image is scaled unevenly to a square: the crop's aspect varies.
        tall = int(rng.integers(int(0.65 * height), height + 1))
        top = int(rng.integers(0, height - tall + 1))
        image = image[top : top + tall]
    method = cv2.INTER_AREA if rng.random() < 0.5 else cv2.INTER_LINEAR
    image = cv2.resize(image, (size, size), interpolation=method).astype(np.uint8)
    return _transfer(rng, image)


def _transfer(rng: np.random.Generator, image: Image) -> Image:
    """Random gain, contrast and gamma, as a look-up table."""
    levels = np.linspace(0, 1, 256)
    middle = rng.uniform(0.2, 0.5)
    curve = middle + (levels - middle) * rng.uniform(0.6, 2.0) + rng.normal(0, 0.08)
    curve = np.clip(curve, 0, 1) ** rng.uniform(0.8, 1.4)
    return (255 * curve).astype(np.uint8)[image]


def _speckle_scene(rng: np.random.Generator, size: int) -> Image:
    """Speckle or filtered noise over a smooth level, log-compressed or linear; (size, size)."""
    swing = rng.uniform(0, 10)
    cells = rng.uniform(1, 20, 2)
    level = swing * smooth_noise(rng, size, float(cells[0]), float(cells[1]))
    if rng.random() < 0.5:
        # A few regions of constant echogenicity: the borders that matter for segmentation.
        regions = smooth_noise(rng, size, 4, 4) > rng.uniform(-1, 1)
        level = level + rng.uniform(4, 25) * regions
    amplitude = np.power(np.float32(10), level.astype(np.float32) / 20)
    axial, lateral = np.exp(rng.uniform(np.log(0.4), np.log(2.5), 2))
    looks = int(rng.integers(1, 7))
    envelope = np.mean(
        [
            speckle_envelope(rng, amplitude, axial, lateral, float(rng.uniform(1, 2.5)))
            for _ in range(looks)
        ],
        axis=0,
    )
    if rng.random() < 0.75:
        field = 20 * np.log10(envelope + 1e-3)
        low = np.median(field) - rng.uniform(5, 30)
        field = (field - low) / rng.uniform(20, 60)
    else:
        field = envelope / np.percentile(envelope, rng.uniform(80, 99.9))
    image = np.clip(255 * field, 0, 255).astype(np.uint8)
    return image.T.copy() if rng.random() < 0.15 else image


def _colour(rng: np.random.Generator, grey: bool) -> NDArray[np.float32]:
    if grey:
        return np.repeat(rng.random(1, np.float32), 3)
    base = rng.random(3, np.float32)
    return base + (base.mean() - base) * rng.random(dtype=np.float32)


def _leaves_scene(rng: np.random.Generator, size: int) -> Image:
    """Dead leaves with a power law of radii, flat, shaded or textured; (size, size, 3)."""
    grey = rng.random() < 0.6
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = _colour(rng, grey)
    smallest = rng.uniform(0.01, 0.06) * size
    for _ in range(int(rng.integers(15, 130))):
        radius = smallest / max(rng.random(), 0.004) ** 0.5
        radius = min(radius, size * 0.6)
        stencil = np.zeros((size, size), np.uint8)
        _draw_leaf(rng, stencil, radius)
        x, y, w, h = cv2.boundingRect(stencil)
        if w == 0:
            continue
        box = (slice(y, y + h), slice(x, x + w))
        paint = np.broadcast_to(_colour(rng, grey), (h, w, 3)).copy()
        if rng.random() < 0.4:
            ramp = np.linspace(-1, 1, w, dtype=np.float32)[None, :, None]
            rise = np.linspace(-1, 1, h, dtype=np.float32)[:, None, None]
            paint += rng.uniform(-0.3, 0.3) * ramp + rng.uniform(-0.3, 0.3) * rise
        if rng.random() < 0.4:
            grain = cv2.GaussianBlur(
                rng.standard_normal((h, w), np.float32), (0, 0), float(rng.uniform(0.3, 2.5))
            )
            paint += rng.uniform(0.02, 0.2) / (grain.std() + 1e-3) * grain[..., None]
        alpha = stencil[box][..., None].astype(np.float32) / 255
        canvas[box] += alpha * (paint - canvas[box])
    return (np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def _draw_leaf(rng: np.random.Generator, stencil: Image, radius: float) -> None:
    size = stencil.shape[0]
    centre = rng.uniform(-0.1, 1.1, 2) * size
    shape = rng.integers(3)
    if shape == 0:
        cv2.circle(stencil, centre.astype(int).tolist(), int(radius), 255, -1, cv2.LINE_AA)
    elif shape == 1:
        axes = (int(radius), int(radius * rng.uniform(0.2, 1)))
        angle = float(rng.uniform(0, 180))
        cv2.ellipse(stencil, centre.astype(int).tolist(), axes, angle, 0, 360, 255, -1, cv2.LINE_AA)
    else:
        turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        reach = radius * rng.uniform(0.4, 1.2, turns.size)
        points = centre + np.stack([reach * np.cos(turns), reach * np.sin(turns)], axis=1)
        cv2.fillPoly(stencil, [points.astype(np.int32)], 255, cv2.LINE_AA)


def _mask_scene(rng: np.random.Generator, size: int) -> Image:
    """A binary mask as RGB 0 / 255, from empty to full, with the steps of nearest sampling."""
    draw = rng.random()
    side = int(rng.integers(100, 600))
    if draw < 0.04:
        return np.full((size, size, 3), 255 * int(rng.integers(2)), np.uint8)
    if draw < 0.45:
        cells = float(np.exp(rng.uniform(np.log(1.5), np.log(14))))
        field = smooth_noise(rng, side, cells, cells)
        if rng.random() < 0.3:
            field = field + 0.3 * smooth_noise(rng, side, 4 * cells, 4 * cells)
        blobs = (field > rng.normal(0.3, 0.7)).astype(np.uint8)
    else:
        blobs = np.zeros((side, side), np.uint8)
        for _ in range(int(rng.integers(1, 6))):
            _draw_blob(rng, blobs)
        if rng.random() < 0.1:
            blobs = 1 - blobs
    mask = cv2.resize(blobs, (size, size), interpolation=cv2.INTER_NEAREST)
    if rng.random() < 0.3:
        mask = np.rot90(mask, int(rng.integers(4)))
    return _grey(np.ascontiguousarray(mask * 255).astype(np.uint8))


def _draw_blob(rng: np.random.Generator, blobs: Image) -> None:
    side = blobs.shape[0]
    turns = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    reach = np.ones_like(turns)
    for n in range(2, int(rng.integers(3, 16))):
        phase = rng.uniform(0, 2 * np.pi)
        reach += rng.uniform(0, 0.3) / n * np.cos(n * turns + phase) * rng.standard_normal()
    radius = side * float(np.exp(rng.uniform(np.log(0.02), np.log(0.35))))
    x, y = rng.uniform(0, side, 2)
    points = np.stack(
        [
            x + radius * reach * np.cos(turns),
            y + radius * reach * np.sin(turns) * rng.uniform(0.4, 1.1),
        ],
        axis=1,
    )
    cv2.fillPoly(blobs, [points.astype(np.int32)], 1)


def _annotate(rng: np.random.Generator, image: Image) -> Image:
    """Scanner text, callipers, dotted lines and black margins over a grey image."""
    image = image.copy()
    size = image.shape[0]
    if rng.random() < 0.3:
        margin = int(rng.integers(4, size // 4))
        image = np.rot90(image, k := int(rng.integers(4))).copy()
        image[:margin] = int(rng.integers(0, 12))
        image = np.rot90(image, -k).copy()
    for _ in range(int(rng.integers(2, 7))):
        text = "".join(rng.choice(list("ABCDILMNOQRTUX0123456789 .:"), int(rng.integers(1, 9))))
        place = (int(rng.integers(0, size)), int(rng.integers(8, size)))
        level = int(rng.integers(150, 256))
        font = cv2.FONT_HERSHEY_SIMPLEX if rng.random() < 0.6 else cv2.FONT_HERSHEY_PLAIN
        cv2.putText(image, text, place, font, float(rng.uniform(0.3, 0.9)), level, 1, cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 5))):
        start, end = rng.integers(0, size, 2), rng.integers(0, size, 2)
        level = int(rng.integers(150, 256))
        for point in (start, end):
            cv2.drawMarker(image, point.tolist(), level, int(rng.integers(2)), 7, 1)
        for step in np.linspace(0, 1, max(int(np.hypot(*(end - start)) / 4), 2)):
            x, y = np.clip(np.rint(start + step * (end - start)).astype(int), 0, size - 1)
            image[y, x] = level
    return image


def _degrade(rng: np.random.Generator, image: Image) -> Image:
    """What files go through: rescaling, blur, sharpening, sensor noise, JPEG compression."""
    size = image.shape[0]
    result: Any = image
    if rng.random() < 0.25:
        smaller = int(size * rng.uniform(0.5, 0.95))
        result = cv2.resize(result, (smaller, smaller), interpolation=cv2.INTER_AREA)
        result = cv2.resize(result, (size, size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.15:
        result = cv2.GaussianBlur(result, (0, 0), float(rng.uniform(0.3, 1.5)))
    if rng.random() < 0.3:
        soft = cv2.GaussianBlur(result, (0, 0), float(rng.uniform(0.6, 1.5)))
        amount = float(rng.uniform(0.2, 1.0))
        result = cv2.addWeighted(result, 1 + amount, soft, -amount, 0)
    if rng.random() < 0.1:
        noise = rng.normal(0, rng.uniform(1, 20), (*result.shape[:2], 1))
        result = np.clip(result + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 98))]
        _, data = cv2.imencode(".jpg", result, quality)
        result = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return result.astype(np.uint8, copy=False)
