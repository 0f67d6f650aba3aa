"""A page to try a trained model: drop an image, see its mask, area and uncertainty.

    python app.py --run ckpt/wave_gms_busi/epochs_1000
    python app.py --onnx model.onnx --port 8000

Opens on this machine only (http://127.0.0.1:7860); works without a connection. Uploads are deleted
as soon as they are read, results live in memory and go with the page. For research; not for clinical
use. See docs/predict.md.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import html
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.entry import check_values, exit_from, positive_int

if TYPE_CHECKING:
    import gradio
    import numpy as np

    from datasets.windowing import Window
    from engine.backends import Backend
    from engine.prediction import Segmentation

log = logging.getLogger("wavegms")

SHOWN_SIDE = 1024  # of the images on the page, pixels
FORGET_SECONDS = 900  # results of a page that was left open, uploads that were never read
STYLE = """
.wavegms-figures { display: flex; flex-wrap: wrap; gap: 1rem; }
.wavegms-figures figure { margin: 0; flex: 1 1 18rem; max-width: 40rem; }
.wavegms-figures img { width: 100%; height: auto; border-radius: 4px; }
.wavegms-figures figcaption { font-size: 0.9rem; opacity: 0.8; }
.wavegms-numbers { display: grid; grid-template-columns: max-content auto; gap: 0.2rem 1rem; }
.wavegms-numbers dd { margin: 0; font-weight: 600; }
"""


@dataclass(frozen=True)
class Shown:
    """What the page holds of one image until the next."""

    name: str
    pixels: np.ndarray  # (H, W, 3) uint8
    note: str
    segmentation: Segmentation


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    from engine.trained_run import add_model_arguments

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; any but 127.0.0.1 lets other machines in, without a password",
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="default: the first free one from 7860"
    )
    parser.add_argument(
        "--window",
        metavar="LOW,HIGH|auto",
        help="values of black and white in images of more than 8 bits; auto: each one's range",
    )
    parser.add_argument(
        "--max-mb", type=positive_int, default=20, metavar="N", help="refuse larger uploads (20)"
    )
    parser.add_argument(
        "--max-megapixels",
        type=float,
        default=16,
        metavar="N",
        help="refuse larger images before decoding them (16)",
    )
    arguments = parser.parse_args(argv)
    check_values(
        parser,
        ("port", arguments.port is None or 0 < arguments.port < 65536, "from 1 to 65535"),
        ("max-megapixels", arguments.max_megapixels > 0, "above 0"),
    )
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    from datasets.windowing import parse_window
    from engine.backends import open_backend
    from utils.errors import UserError
    from utils.runs import log_to

    log_to()
    window = None if arguments.window is None else parse_window(arguments.window)
    with tempfile.TemporaryDirectory(prefix="upload-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            import gradio
        except ImportError as error:
            raise UserError("the page needs Gradio: pip install 'gradio>=6.0,<7'") from error

        page = build_page(open_backend(arguments), arguments.max_megapixels, window)
        try:
            _, address, _ = page.launch(
                server_name=arguments.host,
                server_port=arguments.port,
                share=False,
                prevent_thread_lock=True,
                show_error=False,
                max_file_size=arguments.max_mb << 20,
                footer_links=[],
                ssr_mode=False,
                quiet=True,
                css=STYLE,
                theme=gradio.themes.Default(font="system-ui", font_mono="monospace"),
            )
        except OSError as error:
            raise UserError(
                f"cannot listen on {arguments.host} port {arguments.port or '7860 to 7959'}: "
                "it is in use or not allowed; name another by --port"
            ) from error
        log.info("open %s in a browser; Ctrl-C stops it", address)
        wait_for_stop()
        page.close(verbose=False)


def wait_for_stop() -> None:
    """Until SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def build_page(backend: Backend, max_megapixels: float, window: Window = None) -> gradio.Blocks:
    """The page on top of a model."""
    import gradio

    from datasets.decoding import ImageError
    from datasets.pictures import SUFFIXES, Picture, read_picture
    from engine.prediction import PredictionOptions, segment

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
                tta = gradio.Checkbox(
                    label="Uncertainty",
                    info="From flips and quarter turns; takes eight times as long",
                    elem_id="uncertainty",
                )
                threshold = gradio.Slider(
                    0.01,
                    0.99,
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
    """Content of an upload, of which nothing is left on the disk; ImageError where it is gone already.

    Gradio keeps one file for equal uploads, so that one of two at once may find it taken by the other.
    """
    from datasets.decoding import ImageError

    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("was uploaded twice at once: upload it again") from error
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # holds another upload
        path.parent.rmdir()
    for stray in path.parents[1].glob("tmp*"):  # Gradio makes an empty file for each upload
        if stray.is_file() and stray.stat().st_size == 0:
            stray.unlink(missing_ok=True)
    return content


def draw(shown: Shown | None, threshold: float) -> str:
    """The result as HTML that needs no file: figures and numbers."""
    import numpy as np

    from utils.overlay import colour_map, draw_overlay

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
    return (
        f'<div class="wavegms-figures">{images}</div><table class="wavegms-numbers">{rows}</table>'
    )


def data_uri(image: np.ndarray) -> str:
    """RGB (H, W, 3) uint8 as a JPEG in the page itself, at most SHOWN_SIDE on a side."""
    import cv2

    from datasets.cases import resize_image
    from utils.images import encode_image

    height, width = image.shape[:2]
    factor = min(1, SHOWN_SIDE / max(height, width))
    image = resize_image(image, max(1, round(height * factor)), max(1, round(width * factor)))
    content = encode_image(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


if __name__ == "__main__":
    exit_from(main)
