"""The web page of app.py: an image is uploaded, its mask, area and uncertainty are shown.

Uploads are deleted as soon as they are read, results live in memory and go with the page.
"""

from __future__ import annotations

import base64
import contextlib
import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datasets.cases import resize_image
from datasets.image_headers import ImageError
from datasets.pictures import SUFFIXES, Picture, read_picture
from datasets.windowing import Window
from engine.backends import Backend
from engine.prediction import PredictionOptions, Segmentation, segment
from utils.images import encode_image, encode_png
from utils.overlay import colour_map, draw_overlay

if TYPE_CHECKING:
    import gradio

SHOWN_SIDE = 1024  # longest side of an image on the page, pixels
FORGET_SECONDS = (
    900  # how long an unused page keeps its result, and an unread upload lies on the disk
)
STYLE = """
.wavegms-figures { display: flex; flex-wrap: wrap; gap: 1rem; }
.wavegms-figures figure { margin: 0; flex: 1 1 18rem; max-width: 40rem; }
.wavegms-figures img { width: 100%; height: auto; border-radius: 4px; }
.wavegms-figures figcaption { font-size: 0.9rem; opacity: 0.8; }
.wavegms-numbers { display: grid; grid-template-columns: max-content auto; gap: 0.2rem 1rem; }
"""


@dataclass(frozen=True)
class Shown:
    """An image and its result, which the page keeps until the next image."""

    name: str
    pixels: np.ndarray  # (H, W, 3) uint8
    note: str
    segmentation: Segmentation


def build_page(backend: Backend, max_megapixels: float, window: Window = None) -> gradio.Blocks:
    """The page for one model; images of more than `max_megapixels` are refused."""
    import gradio

    def segment_one(name: str, picture: Picture, tta: bool) -> Shown:
        pictures = [(None, picture.pixels)]
        ((_, segmentation),) = segment(backend, pictures, PredictionOptions(tta=tta), batch_size=8)
        return Shown(name, picture.pixels, picture.note, segmentation)

    def upload(path: str, tta: bool, threshold: float) -> tuple[None, Shown | None, str]:
        name = Path(path).name
        try:
            content = take(Path(path))
            picture = read_picture(content, max_megapixels, window, Path(path).suffix)
        except ImageError as error:
            return None, None, f'<p role="alert">{html.escape(f"{name}: {error}")}</p>'
        shown = segment_one(name, picture, tta)
        return None, shown, draw(shown, threshold)

    def again(shown: Shown | None, tta: bool, threshold: float) -> tuple[Shown | None, str]:
        if shown is not None:
            shown = segment_one(shown.name, Picture(shown.pixels, shown.note), tta)
        return shown, draw(shown, threshold)

    with gradio.Blocks(
        title="Wave-GMS", analytics_enabled=False, delete_cache=(60, FORGET_SECONDS)
    ) as page:
        gradio.Markdown(
            "# Wave-GMS\nDrop an image to segment it. For research; **not for clinical use**."
        )
        state = gradio.State(time_to_live=FORGET_SECONDS)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=260):
                file = gradio.File(
                    label="Image", file_types=list(SUFFIXES), height=160, elem_id="picture"
                )
                # else Gradio makes an empty file for each upload, and leaves it behind
                file.preprocess = lambda payload: payload and payload.path
                ways = "mirror images" if backend.orientations == 2 else "flips and quarter turns"
                tta = gradio.Checkbox(
                    label="Uncertainty",
                    info=f"From {ways}; takes {backend.orientations} times as long",
                    elem_id="uncertainty",
                )
                threshold = gradio.Slider(
                    min(0.01, backend.threshold),
                    max(0.99, backend.threshold),
                    value=backend.threshold,
                    step=0.01,
                    label="Threshold",
                    info="Minimum probability of a mask pixel",
                    elem_id="threshold",
                )
            with gradio.Column(scale=3):
                view = gradio.HTML(draw(None, backend.threshold), elem_id="result")

        hidden: dict[str, Any] = {"api_visibility": "private"}
        file.upload(upload, [file, tta, threshold], [file, state, view], **hidden)
        tta.change(again, [state, tta, threshold], [state, view], **hidden)
        threshold.change(
            draw,
            [state, threshold],
            view,
            show_progress="hidden",
            trigger_mode="always_last",
            **hidden,
        )
    return page


def take(path: Path) -> bytes:
    """Read an upload and delete it from the disk; ImageError if it is gone already.

    Gradio keeps one file for equal uploads, so of two at the same time one finds it deleted.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("was uploaded twice at once: upload it again") from error
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # holds another upload
        path.parent.rmdir()
    return content


def draw(shown: Shown | None, threshold: float) -> str:
    """The result as HTML, figures and numbers; the images are part of the text."""
    if shown is None:
        return "<p>The result appears here.</p>"
    if not np.isfinite(shown.segmentation.probability).all():
        return "<p>The model's output is not a number: its weights are damaged.</p>"
    mask = shown.segmentation.mask(threshold)
    area, uncertainty = int(mask.sum()), shown.segmentation.uncertainty
    figures = [("Mask", draw_overlay(shown.pixels, mask))]
    numbers = [
        ("Image", f"{shown.name}, {mask.shape[1]} x {mask.shape[0]} px"),
        ("Area", f"{area:,} px, {100 * area / mask.size:.2f} %"),
    ]
    if uncertainty is not None:
        figures.append(("Uncertainty, 0 (dark) to 0.5", colour_map(2 * uncertainty)))
        numbers.append(("Mean uncertainty", f"{uncertainty.mean():.4f}"))
    if shown.note:
        numbers.append(("Note", shown.note))
    images = "".join(
        f'<figure><img src="{data_uri(image)}" alt="{title} of {html.escape(shown.name)}">'
        f"<figcaption>{title}</figcaption></figure>"
        for title, image in figures
    )
    rows = "".join(
        f"<tr><td>{key}</td><td>{html.escape(value)}</td></tr>" for key, value in numbers
    )
    stem = html.escape(Path(shown.name).stem, quote=True)
    content = base64.b64encode(encode_png(mask.astype(np.uint8) * 255)).decode()
    save = (
        f'<p><a download="{stem}_mask.png" href="data:image/png;base64,{content}">'
        "Save the mask</a> (PNG of the image's size, 0 and 255)</p>"
    )
    return f'<div class="wavegms-figures">{images}</div>{save}<table class="wavegms-numbers">{rows}</table>'


def data_uri(image: np.ndarray) -> str:
    """RGB (H, W, 3) uint8 as the address of a JPEG that holds its content, reduced to SHOWN_SIDE."""
    height, width = image.shape[:2]
    factor = min(1, SHOWN_SIDE / max(height, width))
    image = resize_image(image, max(1, round(height * factor)), max(1, round(width * factor)))
    content = encode_image(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
