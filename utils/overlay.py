"""Drawing masks and maps for the eye."""

from __future__ import annotations

import cv2
import numpy as np

MASK_COLOUR = (0, 220, 255)  # RGB; apart from tissue and readable with any colour vision
FILL = 0.3


def draw_overlay(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) uint8 with the mask (H, W) bool tinted and outlined."""
    colour = np.broadcast_to(np.array(MASK_COLOUR, np.uint8), pixels.shape)
    overlay = pixels.copy()
    cv2.copyTo(cv2.addWeighted(colour, FILL, pixels, 1 - FILL, 0), mask.astype(np.uint8), overlay)
    draw_outline(overlay, mask, MASK_COLOUR, thickness=max(1, round(min(mask.shape) / 256)))
    return overlay


def draw_outline(
    picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], thickness: int
) -> None:
    """Draw the outlines of the mask (H, W) into the picture (H, W, 3) uint8 of the same size."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, colour, thickness)


def colour_map(values: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) uint8 of values (H, W) in [0, 1], dark to bright."""
    steps = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(steps, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
