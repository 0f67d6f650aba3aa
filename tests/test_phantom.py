from __future__ import annotations

import cv2
import numpy as np
import pytest

from datasets.phantom import SCANNERS, PhantomCase, phantom_case, speckle_envelope
from scoring.metrics import dice


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    return [phantom_case(index, size=160) for index in range(40)]


@pytest.mark.parametrize("domain", sorted(SCANNERS))
@pytest.mark.parametrize("size", [64, 200])
def test_same_arguments_give_the_same_pixels(domain: str, size: int) -> None:
    first = phantom_case(3, seed=7, size=size, domain=domain)
    second = phantom_case(3, seed=7, size=size, domain=domain)
    assert first.image.shape == first.mask.shape == (size, size)
    assert first.image.dtype == first.mask.dtype == np.uint8
    assert (first.name, first.kind) == (second.name, second.kind)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_index_seed_and_domain_each_change_the_image() -> None:
    images = [
        phantom_case(0, size=64).image,
        phantom_case(1, size=64).image,
        phantom_case(0, seed=1, size=64).image,
        phantom_case(0, size=64, domain="b").image,
    ]
    for i, one in enumerate(images):
        assert all((one != other).mean() > 0.5 for other in images[i + 1 :])


def test_masks_are_binary_and_normal_cases_alone_have_none(cases: list[PhantomCase]) -> None:
    for case in cases:
        assert set(np.unique(case.mask)) <= {0, 255}
        assert case.mask.any() == (case.kind != "normal")
        assert case.mask.mean() / 255 < 0.4


def test_all_kinds_occur_and_normals_are_few() -> None:
    kinds = [phantom_case(index, size=32).kind for index in range(120)]
    assert 0.03 < kinds.count("normal") / 120 < 0.15
    assert kinds.count("benign") > 36
    assert kinds.count("malignant") > 30


def test_lesions_are_darker_than_what_surrounds_them(cases: list[PhantomCase]) -> None:
    contrasts = []
    for case in cases:
        if case.kind != "normal":
            near = cv2.dilate(case.mask, np.ones((15, 15))) > case.mask
            contrasts.append(case.image[near].mean() - case.image[case.mask > 0].mean())
    assert np.mean(contrasts) > 20
    assert np.mean(np.array(contrasts) > 5) > 0.9


def test_deep_tissue_is_darker(cases: list[PhantomCase]) -> None:
    shallow, deep = (
        [case.image[rows].mean() for case in cases] for rows in (slice(20, 60), slice(120, 160))
    )
    assert np.mean(shallow) > np.mean(deep) + 10


def test_speckle_grows_with_the_image() -> None:
    def correlation_of_neighbours(size: int) -> float:
        found = []
        for index in range(3):
            image = phantom_case(index, size=size).image.astype(float)
            detail = image - cv2.GaussianBlur(image, (0, 0), size / 40)
            found.append(np.mean(detail[:, 1:] * detail[:, :-1]) / np.mean(detail**2))
        return float(np.mean(found))

    assert correlation_of_neighbours(256) > correlation_of_neighbours(64) + 0.3


def test_malignant_outlines_are_rougher_than_benign(cases: list[PhantomCase]) -> None:
    roundness: dict[str, list[float]] = {"benign": [], "malignant": [], "normal": []}
    for case in cases:
        for outline in cv2.findContours(case.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
            area, hull = cv2.contourArea(outline), cv2.contourArea(cv2.convexHull(outline))
            roundness[case.kind].append(area / max(hull, 1))
    assert np.median(roundness["malignant"]) < np.median(roundness["benign"]) - 0.05


def test_a_threshold_on_smoothed_intensity_does_not_solve_the_task(
    cases: list[PhantomCase],
) -> None:
    best = 0.0
    for sigma in (2, 4, 6):
        smooth = [cv2.GaussianBlur(case.image, (0, 0), sigma) for case in cases]
        for level in range(10, 120, 6):
            scores = [dice(s < level, c.mask > 0) for s, c in zip(smooth, cases, strict=True)]
            best = max(best, float(np.mean(scores)))
    assert 0.05 < best < 0.6


def test_domain_b_is_brighter_and_has_stronger_speckle() -> None:
    def statistics(domain: str) -> tuple[float, float]:
        images = [phantom_case(i, size=160, domain=domain).image.astype(float) for i in range(10)]
        details = [image - cv2.GaussianBlur(image, (0, 0), 4) for image in images]
        return float(np.mean(images)), float(np.mean([detail.std() for detail in details]))

    (level_a, detail_a), (level_b, detail_b) = statistics("a"), statistics("b")
    assert level_b > level_a + 15
    assert detail_b > detail_a + 3


def test_speckle_of_uniform_tissue_is_rayleigh() -> None:
    rng = np.random.default_rng(0)
    envelope = speckle_envelope(rng, np.ones((512, 512), np.float32), 0.7, 1.5, 2.0)
    assert np.mean(envelope**2) == pytest.approx(1, abs=0.1)
    assert envelope.mean() / envelope.std() == pytest.approx(1.913, abs=0.1)
    near = [np.corrcoef(row[1:], row[:-1])[0, 1] for row in envelope[:100]]
    far = [np.corrcoef(row[1:], row[:-1])[0, 1] for row in envelope[-100:]]
    assert np.mean(far) > np.mean(near) + 0.03


def test_unknown_domain_and_tiny_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'c'.*a, b"):
        phantom_case(0, domain="c")
    with pytest.raises(ValueError, match="at least 32"):
        phantom_case(0, size=16)
