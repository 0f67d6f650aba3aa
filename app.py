"""A page to try a trained model: drop an image, see its mask, area and uncertainty.

    python app.py --run ckpt/wave_gms_busi/epochs_1000
    python app.py --onnx model.onnx --port 8000

Opens on this machine only (http://127.0.0.1:7860); works without a connection. Uploads are deleted
as soon as they are read, results live in memory and go with the page. For research; not for clinical
use. See docs/predict.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Sequence

from utils.entry import check_values, described_parser, exit_from, positive_int

log = logging.getLogger("wavegms")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    from engine.prediction.model_arguments import (
        add_megapixels_argument,
        add_model_arguments,
        add_window_argument,
    )

    parser = described_parser(__doc__)
    add = parser.add_argument
    add_model_arguments(parser)
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; any but 127.0.0.1 lets other machines in, without a password",
    )
    add("--port", type=int, metavar="N", help="default: the first free one from 7860")
    add_window_argument(parser)
    add("--max-mb", type=positive_int, default=20, metavar="N", help="refuse larger uploads (20)")
    add_megapixels_argument(parser, default=16)
    arguments = parser.parse_args(argv)
    check_values(
        parser,
        ("port", arguments.port is None or 0 < arguments.port < 65536, "from 1 to 65535"),
    )
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    from engine.prediction.backends import open_backend, window_for
    from engine.prediction.web_access import RefuseForeign
    from engine.prediction.web_page import STYLE, build_page
    from utils.errors import UserError
    from utils.logs import log_to

    log_to()
    with tempfile.TemporaryDirectory(prefix="upload-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        ask_directly(arguments.host)
        try:
            import gradio
            from starlette.middleware import Middleware
        except ImportError as error:
            raise UserError("the page needs Gradio: pip install 'gradio>=6.17.3,<7'") from error

        backend = open_backend(arguments)
        window = window_for(backend, arguments.window)
        page = build_page(backend, arguments.max_megapixels, window)
        try:
            _, address, _ = page.launch(
                server_name=in_brackets(arguments.host),
                server_port=arguments.port,
                share=False,
                prevent_thread_lock=True,
                show_error=False,
                max_file_size=arguments.max_mb << 20,
                footer_links=[],
                ssr_mode=False,
                quiet=True,
                app_kwargs={"middleware": [Middleware(RefuseForeign, host=arguments.host)]},
                css=STYLE,
                theme=gradio.themes.Default(font="system-ui", font_mono="monospace").set(
                    # the theme's own has a contrast of 2:1
                    body_text_color_subdued="*neutral_600",
                    body_text_color_subdued_dark="*neutral_300",
                ),
            )
        except OSError as error:
            raise UserError(
                f"cannot listen on {arguments.host} port {arguments.port or '7860 to 7959'}: "
                "it is in use or not allowed; name another by --port"
            ) from error
        log.info("open %s in a browser; Ctrl-C stops it", address)
        wait_for_stop()
        page.close(verbose=False)


def in_brackets(host: str) -> str:
    """An address of IPv6 as in a URL, which Gradio makes of it; others as they are."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def ask_directly(host: str) -> None:
    """Let no proxy of the environment stand before this machine: Gradio asks its own page as it starts."""
    host = host.strip("[]")  # the client takes an address of IPv6 without
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "").split(",")
        os.environ[name] = ",".join([*filter(None, known), "localhost", "127.0.0.1", host])


def wait_for_stop() -> None:
    """Until SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


if __name__ == "__main__":
    exit_from(main)
