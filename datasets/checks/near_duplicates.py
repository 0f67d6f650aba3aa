"""Finding images that show the same source: copies, re-crops, re-annotations, adjacent frames.

1. Candidates, from all pairs: equal pixels, unless they have one value throughout; thumbnails that
   correlate; ORB features (Rublee et al. 2011) that agree, counted with locality-sensitive hashing
   (Indyk and Motwani 1998). By thumbnails and by features, each image keeps its best few partners,
   so that the candidates grow with the number of images and not of pairs.
2. Each candidate is confirmed or dropped: an affine map is fitted to the matched features by
   RANSAC, one image is warped onto the other, and their overlap must correlate.

The thresholds were set by looking at the pairs of BUSI and HAM10000. Pairs that share only a caption
or a round field of view reach 42 features that agree, but then a correlation below 0.8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from utils.machine import available_cores

WORKING_SIDE = 400
"""Images are compared at this many pixels at most on the longer side."""
FEATURES = 500
THUMBNAIL = 32
MIN_VOTES = 4
"""Pairs of agreeing features that make two images candidates."""
MIN_THUMBNAIL_CORRELATION = 0.95
BLOCK = 256
"""Images whose thumbnails are compared with all others at a time."""
PARTNERS = 8
"""Best partners that each image keeps, by thumbnails and again by features."""
TABLES = 8
"""Random choices of bits, in each of which descriptors that agree meet."""
CROWD = 16
"""Descriptors that meet at most; more have a pattern in common that says nothing of a pair."""
MAX_HAMMING = 40
"""Bits of 256 in which two ORB descriptors of the same spot may differ."""
MIN_INLIERS = 30
MIN_CORRELATION = 0.9
MIN_OVERLAP = 0.3

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageFeatures:
    """What is kept of an image to compare it with all others."""

    digest: bytes
    """Hash of size and pixels."""
    blank: bool
    """Whether all pixels have one value, which says nothing of the source."""
    thumbnail: NDArray[np.float32]
    """(THUMBNAIL ** 2,), zero mean and unit norm, so that a dot product is the correlation."""
    points: NDArray[np.float32]
    """(F, 2) x, y of the features at working size."""
    bits: NDArray[np.uint64]
    """(F, 4) their ORB descriptors."""


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that show the same source."""

    first: str
    second: str
    correlation: float
    """Of the overlap after alignment, 1 for equal pixels."""
    overlap: float
    """Part of the smaller image that the other covers."""
    inliers: int
    """Features that agree with the alignment, 0 where the pixels are equal."""


def working_size(grey: Grey) -> Grey:
    """The image at the size at which images are compared."""
    scale = WORKING_SIDE / max(grey.shape)
    if scale >= 1:
        return grey
    fy, fx = (max(scale, 1 / side) for side in grey.shape)  # one pixel at least
    return np.asarray(cv2.resize(grey, None, fx=fx, fy=fy, interpolation=cv2.INTER_AREA))


def image_features(grey: Grey) -> ImageFeatures:
    """The features of an image (H, W) of working size."""
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    thumbnail = small.astype(np.float32).ravel()
    thumbnail -= thumbnail.mean()
    thumbnail /= max(float(np.linalg.norm(thumbnail)), 1e-6)
    points, descriptors = _orb_features(grey)
    return ImageFeatures(
        digest=hashlib.sha256(repr(grey.shape).encode() + grey.tobytes()).digest(),
        blank=bool(grey.min() == grey.max()),
        thumbnail=thumbnail,
        points=points,
        bits=descriptors.view(np.uint64),
    )


def _orb_features(grey: Grey) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Positions (F, 2) and ORB descriptors (F, 32), F = 0 where there is nothing to detect."""
    none = np.empty((0, 2), np.float32), np.empty((0, 32), np.uint8)
    if min(grey.shape) < THUMBNAIL:  # ORB fails on images smaller than its pyramid
        return none
    detector = cv2.ORB.create(nfeatures=FEATURES, edgeThreshold=15, fastThreshold=5)
    keypoints, descriptors = detector.detectAndCompute(grey, None)
    if descriptors is None:
        return none
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)
    return points, descriptors.astype(np.uint8, copy=False)


def candidates(images: Sequence[ImageFeatures]) -> set[tuple[int, int]]:
    """Pairs (i, j), i < j, that may be near-duplicates."""
    return (
        _equal_pixels(images)
        | _correlated_thumbnails(np.stack([image.thumbnail for image in images]))
        | _agreeing_features([image.bits for image in images])
    )


def _equal_pixels(images: Sequence[ImageFeatures]) -> set[tuple[int, int]]:
    """Each image that is not blank with the first of the same pixels."""
    first: dict[bytes, int] = {}
    return {
        (first[image.digest], i)
        for i, image in enumerate(images)
        if not image.blank and first.setdefault(image.digest, i) != i
    }


def _correlated_thumbnails(thumbnails: NDArray[np.float32]) -> set[tuple[int, int]]:
    """Each image with its best partners among those whose thumbnails correlate.

    Where all images share a field of view, all correlate. The best are therefore chosen by the
    correlation of what is left of the thumbnails without their mean.
    """
    centred = thumbnails - thumbnails.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    pairs = set()
    for start in range(0, len(thumbnails), BLOCK):
        rows = slice(start, start + BLOCK)
        score = centred[rows] @ centred.T
        score[thumbnails[rows] @ thumbnails.T <= MIN_THUMBNAIL_CORRELATION] = -np.inf
        images = np.arange(len(score))
        score[images, images + start] = -np.inf
        best = np.argpartition(-score, min(PARTNERS, len(thumbnails)) - 1)[:, :PARTNERS]
        image, place = np.nonzero(np.take_along_axis(score, best, axis=1) > -np.inf)
        partner = best[image, place].tolist()
        pairs |= {
            tuple(sorted(pair)) for pair in zip((image + start).tolist(), partner, strict=True)
        }
    return pairs


def _agreeing_features(descriptors: Sequence[NDArray[np.uint64]]) -> set[tuple[int, int]]:
    """Each image with its best partners, by at least MIN_VOTES pairs of nearly equal descriptors.

    In each table, descriptors that agree in a random choice of bits meet. Where more than CROWD
    meet they are skipped: such a pattern (caption, compression block) says nothing about a
    pair. The number of bits grows with the number of descriptors, so that few meet by chance.
    """
    bits = np.concatenate(descriptors)
    owner = np.repeat(np.arange(len(descriptors)), [len(d) for d in descriptors])
    width = max(12, int(np.log2(max(len(bits), 1))) + 1)
    rng = np.random.default_rng(0)
    near_pairs = []
    for _ in range(TABLES):
        key = _chosen_bits(bits, rng.choice(256, width, replace=False))
        for a, b in _pairs_of_equal_key(key):
            apart = owner[a] != owner[b]
            a, b = a[apart], b[apart]
            near = np.bitwise_count(bits[a] ^ bits[b]).sum(axis=1) <= MAX_HAMMING
            near_pairs.append(a[near] * len(bits) + b[near])
    met = np.unique(np.concatenate(near_pairs))
    images = owner[met // len(bits)] * len(descriptors) + owner[met % len(bits)]
    pair, votes = np.unique(images, return_counts=True)
    pair, votes = pair[votes >= MIN_VOTES], votes[votes >= MIN_VOTES]
    return _best_pairs(pair // len(descriptors), pair % len(descriptors), votes)


def _chosen_bits(bits: NDArray[np.uint64], columns: Iterable[int]) -> NDArray[np.int64]:
    """Those columns of the 256 bits of each row (F, 4), put together as one number."""
    key = np.zeros(len(bits), np.int64)
    for column in columns:
        word, shift = divmod(int(column), 64)
        key = key << 1 | (bits[:, word] >> np.uint64(shift) & np.uint64(1)).astype(np.int64)
    return key


def _pairs_of_equal_key(
    key: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of places with the same key, without keys that more than CROWD places have."""
    order = np.argsort(key, kind="stable")
    _, run, size = np.unique(key[order], return_inverse=True, return_counts=True)
    kept = size[run] <= CROWD
    order, run = order[kept], run[kept]
    for step in range(1, CROWD):
        (at,) = np.nonzero(run[step:] == run[:-step])
        yield order[at], order[at + step]


def _best_pairs(
    first: NDArray[np.int64], second: NDArray[np.int64], score: NDArray[np.int64]
) -> set[tuple[int, int]]:
    """Pairs (P,) that are among the PARTNERS of highest score of one of their two images."""
    image = np.concatenate([first, second])
    order = np.lexsort((-np.tile(score, 2), image))
    rank = np.arange(len(order)) - np.searchsorted(image[order], image[order])
    kept = np.unique(order[rank < PARTNERS] % max(len(first), 1))
    return set(zip(first[kept].tolist(), second[kept].tolist(), strict=True))


def find_near_duplicates(
    names: Sequence[str],
    features: Sequence[ImageFeatures],
    load: Callable[[int], Grey],
) -> list[NearDuplicate]:
    """All near-duplicates among images, by name. `load(index)` gives an image (H, W) at working size."""
    if len(names) < 2:
        return []
    pairs = sorted(candidates(features))

    def check(pair: tuple[int, int]) -> NearDuplicate | None:
        i, j = pair
        both = features[i], features[j]
        return confirm(names[i], names[j], both, lambda: (load(i), load(j)))

    with ThreadPoolExecutor(available_cores()) as pool:
        checked = tqdm(
            pool.map(check, pairs),
            "confirming near-duplicates",
            len(pairs),
            disable=None,
        )
        return [duplicate for duplicate in checked if duplicate is not None]


def confirm(
    first: str,
    second: str,
    features: tuple[ImageFeatures, ImageFeatures],
    load: Callable[[], tuple[Grey, Grey]],
) -> NearDuplicate | None:
    """The near-duplicate that two candidate images are, or None.

    `load` gives both, (H, W) of working size; it is called only if their features agree.
    """
    one, two = features
    if one.digest == two.digest:
        return NearDuplicate(first, second, correlation=1.0, overlap=1.0, inliers=0)
    if min(len(one.points), len(two.points)) < MIN_INLIERS:
        return None
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True)
    matches = matcher.match(one.bits.view(np.uint8), two.bits.view(np.uint8))
    if len(matches) < MIN_INLIERS:
        return None
    transform, agreeing = cv2.estimateAffine2D(
        one.points[[match.queryIdx for match in matches]],
        two.points[[match.trainIdx for match in matches]],
        method=cv2.RANSAC,
        ransacReprojThreshold=3,
    )
    inliers = 0 if transform is None else int(agreeing.sum())
    if inliers < MIN_INLIERS:
        return None
    correlation, overlap = aligned_correlation(*load(), transform)
    if correlation < MIN_CORRELATION or overlap < MIN_OVERLAP:
        return None
    return NearDuplicate(first, second, round(correlation, 4), round(overlap, 3), inliers)


def aligned_correlation(first: Grey, second: Grey, transform: np.ndarray) -> tuple[float, float]:
    """Correlation on the overlap when `transform` (2, 3) maps `first` onto `second`; the overlap.

    The overlap is a part of the smaller image's area, 0 to 1. Both images are blurred slightly, as
    re-scaling has blurred one of them.
    """
    size = second.shape[::-1]
    warped = cv2.warpAffine(first, transform, size)
    inside = cv2.warpAffine(np.full_like(first, 255), transform, size, flags=cv2.INTER_NEAREST) > 0
    area = abs(float(np.linalg.det(transform[:, :2]))) * first.size
    overlap = float(inside.sum()) / max(min(area, second.size), 1.0)
    if inside.sum() < 2:
        return 0.0, overlap
    a = cv2.GaussianBlur(warped, (0, 0), 1.5)[inside].astype(np.float64)
    b = cv2.GaussianBlur(second, (0, 0), 1.5)[inside].astype(np.float64)
    a -= a.mean()
    b -= b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return (float(a @ b) / norm if norm > 0 else 0.0), min(overlap, 1.0)
