"""The web page of app.py: an image is uploaded, its mask, area and uncertainty are shown.

Uploads are deleted as soon as they are read, results live in memory and go with the page. What is shown
always belongs to the file that was chosen last: while that is uploaded, and if it fails, nothing is.
"""

from __future__ import annotations

import base64
import contextlib
import html
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datasets.cases import resize_image
from datasets.image_files.headers import ImageError
from datasets.image_files.pictures import Picture, read_picture
from datasets.image_files.windowing import Window
from engine.prediction.backends import Backend
from engine.prediction.output_names import stem_of
from engine.prediction.segmentation import PredictionOptions, Segmentation, segment
from utils.images import encode_image, encode_png
from utils.overlay import colour_map, draw_overlay

if TYPE_CHECKING:
    import gradio

SHOWN_SIDE = 1024  # longest side of an image on the page, pixels
# how long an unused page keeps its result, and an unread upload lies on the disk
FORGET_SECONDS = 900
KEEP_SECONDS = 120  # how long the content of an upload is kept for another page with the same file
STYLE = """
.wavegms-result { overflow-wrap: anywhere; }
.wavegms-figures { display: flex; flex-wrap: wrap; gap: 1rem; }
.wavegms-figures figure { margin: 0; flex: 1 1 18rem; max-width: 40rem; min-width: 0; }
.wavegms-figures img {
  width: 100%; height: auto; max-height: 70vh; margin: 0; object-fit: contain; object-position: left top;
}
.wavegms-figures figcaption { font-size: 0.9rem; opacity: 0.8; }
.wavegms-result p { margin: 0.6rem 0; }
.wavegms-result a { margin: 0; padding: 0; }
.wavegms-numbers {
  display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.2rem 1rem; margin: 0;
}
.wavegms-numbers dt, .wavegms-numbers dd { margin: 0; }
#result[data-waiting] .wavegms-result { display: none; }
#result[data-waiting]::before { content: attr(data-waiting); overflow-wrap: anywhere; }
"""
HIDE_EARLIER = """
() => {
  const result = document.getElementById("result"), picture = document.getElementById("picture");
  result.setAttribute("role", "status");
  const wait = files => {
    if (files && files.length) result.dataset.waiting =
      `${files[0].name}: no result yet; there will be none if its upload is refused`;
  };
  picture.addEventListener("change", event => wait(event.target.files), true);
  picture.addEventListener("drop", event => wait(event.dataTransfer.files), true);
}
"""
SHOW_RESULT = "() => { delete document.getElementById('result').dataset.waiting; }"


@dataclass(frozen=True)
class Shown:
    """An image and its result, which the page keeps until the next image."""

    name: str
    pixels: np.ndarray  # (H, W, 3) uint8
    note: str
    segmentation: Segmentation


class Actions:
    """What the page does with one model, on an upload and where its settings change.

    Images of more than `max_megapixels` are refused.
    """

    def __init__(self, backend: Backend, max_megapixels: float, window: Window) -> None:
        self.backend = backend
        self.max_megapixels = max_megapixels
        self.window = window
        self.uploads = Uploads()

    def upload(self, path: str, tta: bool, threshold: float) -> tuple[None, Shown | str, str]:
        """An empty field for the next file, the result or why there is none, and what is drawn of it."""
        file = Path(path)
        try:
            content = self.uploads.take(file)
            picture = read_picture(content, self.max_megapixels, self.window, file.suffix)
        except ImageError as error:
            message = f"{file.name}: {_to_visitors(str(error))}"
            return None, message, draw(message, threshold)
        shown = self._segment(file.name, picture, tta)
        return None, shown, draw(shown, threshold)

    def again(
        self, shown: Shown | str | None, tta: bool, threshold: float
    ) -> tuple[Shown | str | None, str]:
        """The result for the same image, with or without test-time augmentation, and what is drawn of it."""
        if isinstance(shown, Shown):
            shown = self._segment(shown.name, Picture(shown.pixels, shown.note), tta)
        return shown, draw(shown, threshold)

    def _segment(self, name: str, picture: Picture, tta: bool) -> Shown:
        pictures = [(None, picture.pixels)]
        options = PredictionOptions(tta=tta)
        ((_, segmentation),) = segment(self.backend, pictures, options, batch_size=8)
        return Shown(name, picture.pixels, picture.note, segmentation)


def _to_visitors(message: str) -> str:
    """A message on an image; where it advises an option, with what this is an option of."""
    return f"{message} (app.py is to be started with this option)" if "--" in message else message


def build_page(backend: Backend, max_megapixels: float, window: Window = None) -> gradio.Blocks:
    """The page for one model; images of more than `max_megapixels` are refused."""
    import gradio

    actions = Actions(backend, max_megapixels, window)
    with gradio.Blocks(
        title="Wave-GMS", analytics_enabled=False, delete_cache=(60, FORGET_SECONDS)
    ) as page:
        gradio.Markdown(
            "# Wave-GMS\nDrop an image to segment it. For research; **not for clinical use**."
        )
        state = gradio.State(time_to_live=FORGET_SECONDS)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=260):
                # of any type: else the browser refuses some, such as DICOM without an ending
                file = gradio.File(label="Image", height=160, elem_id="picture")
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
        page.load(js=HIDE_EARLIER, **hidden)
        taken = file.upload(actions.upload, [file, tta, threshold], [file, state, view], **hidden)
        taken.then(js=SHOW_RESULT, **hidden)
        tta.change(actions.again, [state, tta, threshold], [state, view], **hidden)
        threshold.change(
            draw,
            [state, threshold],
            view,
            show_progress="hidden",
            trigger_mode="always_last",
            **hidden,
        )
    return page


class Uploads:
    """Takes uploads off the disk, and keeps the content of each for KEEP_SECONDS.

    Gradio keeps one file for equal uploads, so of two pages with the same file one finds it deleted.
    """

    def __init__(self) -> None:
        self._kept: dict[Path, bytes] = {}
        self._lock = threading.Lock()

    def take(self, path: Path) -> bytes:
        """The content of an upload, whose file is deleted; ImageError if it is gone for long."""
        with self._lock:
            try:
                content = path.read_bytes()
                path.unlink(missing_ok=True)
            except FileNotFoundError as error:
                if path not in self._kept:
                    raise ImageError("is no longer here: upload it again") from error
                return self._kept[path]
            with contextlib.suppress(OSError):  # holds another upload
                path.parent.rmdir()
            self._kept[path] = content
        timer = threading.Timer(KEEP_SECONDS, self._forget, (path, content))
        timer.daemon = True
        timer.start()
        return content

    def _forget(self, path: Path, content: bytes) -> None:
        with self._lock:
            if self._kept.get(path) is content:  # else it was uploaded again since
                del self._kept[path]


def draw(shown: Shown | str | None, threshold: float) -> str:
    """The result as HTML, figures and numbers, or an error's message; the images are part of the text."""
    return f'<div class="wavegms-result">{_drawn(shown, threshold)}</div>'


def _drawn(shown: Shown | str | None, threshold: float) -> str:
    if shown is None:
        return "<p>The result appears here.</p>"
    if isinstance(shown, str):
        return f'<p role="alert">{html.escape(shown)}</p>'
    name = html.escape(shown.name)
    if not np.isfinite(shown.segmentation.probability).all():
        return f"<p>{name}: the model's output is not a number: its weights are damaged.</p>"
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
        numbers.append(("Note", _to_visitors(shown.note)))
    images = "".join(
        f'<figure><img src="{data_uri(image)}" alt="{title} of {name}">'
        f"<figcaption>{title}: {name}</figcaption></figure>"
        for title, image in figures
    )
    rows = "".join(f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" for key, value in numbers)
    stem = html.escape(stem_of(Path(shown.name)), quote=True)
    content = base64.b64encode(encode_png(mask.astype(np.uint8) * 255)).decode()
    save = (
        f'<p><a download="{stem}_mask.png" href="data:image/png;base64,{content}">'
        "Save the mask</a> (PNG of the image's size, 0 and 255)</p>"
    )
    return (
        f'<div class="wavegms-figures">{images}</div>{save}<dl class="wavegms-numbers">{rows}</dl>'
    )


def data_uri(image: np.ndarray) -> str:
    """RGB (H, W, 3) uint8 as the address of a JPEG that holds its content, reduced to SHOWN_SIDE."""
    height, width = image.shape[:2]
    factor = min(1, SHOWN_SIDE / max(height, width))
    image = resize_image(image, max(1, round(height * factor)), max(1, round(width * factor)))
    content = encode_image(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
