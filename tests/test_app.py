from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest

import app
import predict
from datasets.image_files.headers import ImageError
from datasets.image_files.pictures import read_picture
from engine.prediction import web_page
from engine.prediction.backends import TorchBackend
from engine.prediction.segmentation import Segmentation
from engine.prediction.web_access import RefuseForeign, refusal
from engine.runs.trained_run import find_run
from tests.cases_on_disk import blob_case
from tests.run_on_disk import ROOT, write_run, write_vae
from utils.entry import exit_from
from utils.errors import UserError

START_SECONDS = 240
WAIT_SECONDS = 240  # a busy machine draws a page late


def test_the_result_needs_no_files_and_escapes_names() -> None:
    pixels = np.zeros((1500, 2000, 3), np.uint8)
    probability = np.zeros((1500, 2000), np.float32)
    probability[:300] = 0.6
    segmentation = Segmentation(probability, np.full_like(probability, 0.25))
    shown = web_page.Shown("<script>.png", pixels, "a & b", segmentation)
    drawn = web_page.draw(shown, 0.5)
    assert "600,000 px, 20.00 %" in drawn and "0.2500" in drawn and "2000 x 1500 px" in drawn
    assert "<script>" not in drawn and "a &amp; b" in drawn
    assert drawn.count('src="data:image/jpeg;base64,') == 2 == drawn.count("src=")
    ((name, content),) = re.findall('download="(.*?)" href="data:image/png;base64,(.*?)"', drawn)
    saved = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_UNCHANGED)
    assert name == "&lt;script&gt;_mask.png"
    np.testing.assert_array_equal(saved, np.where(probability > 0.5, 255, 0))
    assert "<figcaption>Mask: &lt;script&gt;.png</figcaption>" in drawn
    assert "0 px, 0.00 %" in web_page.draw(shown, 0.7)
    uid = web_page.Shown("1.2.840.77", pixels, "", segmentation)
    assert 'download="1.2.840.77_mask.png"' in web_page.draw(uid, 0.5)
    assert "appears here" in web_page.draw(None, 0.5)
    broken = web_page.Shown("x", pixels, "", Segmentation(probability * np.nan, None))
    assert "not a number" in web_page.draw(broken, 0.5)


def test_an_option_that_a_message_advises_is_one_of_app_py(tmp_path: Path) -> None:
    """Who sees the page may not know how it was started."""
    whose = "(app.py is to be started with this option)"
    actions = web_page.Actions(cast(TorchBackend, None), max_megapixels=1, window=None)
    upload = tmp_path / "a--b.tif"
    cv2.imwrite(str(upload), np.ones((4, 4), np.float32))
    _, _, refused = actions.upload(str(upload), False, 0.5)
    assert f"by --window LOW,HIGH or --window auto {whose}" in refused
    _, _, gone = actions.upload(str(tmp_path / "c--d.tif"), False, 0.5)
    assert "c--d.tif: is no longer here" in gone and whose not in gone
    dark = np.full((4, 4), 4095, np.uint16)
    picture = read_picture(cv2.imencode(".png", dark)[1].tobytes(), 1, None, ".png")
    segmentation = Segmentation(np.zeros((4, 4), np.float32), None)
    shown = web_page.Shown("x--y.png", picture.pixels, picture.note, segmentation)
    assert f"--window auto spreads its own range {whose}" in web_page.draw(shown, 0.5)
    assert whose not in web_page.draw(replace(shown, note=""), 0.5)


def test_uploads_are_taken_off_the_disk(tmp_path: Path) -> None:
    upload = tmp_path / "hash" / "scan.png"
    upload.parent.mkdir()
    upload.write_bytes(b"content")
    uploads = web_page.Uploads()
    assert uploads.take(upload) == b"content"
    assert list(tmp_path.iterdir()) == []
    assert uploads.take(upload) == b"content", "of another page that uploaded the same file"
    with pytest.raises(ImageError, match="upload it again"):
        web_page.Uploads().take(upload)


def test_the_content_of_an_upload_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[tuple[float, Any, Any]] = []

    class Timer:
        def __init__(self, *when: Any) -> None:
            timers.append(when)

        def start(self) -> None: ...

    monkeypatch.setattr("threading.Timer", Timer)
    uploads, upload = web_page.Uploads(), tmp_path / "hash" / "scan.png"
    for _ in range(2):
        upload.parent.mkdir()
        upload.write_bytes(b"content")
        uploads.take(upload)
    (seconds, forget, first), (_, _, second) = timers
    forget(*first)
    assert seconds == web_page.KEEP_SECONDS and uploads.take(upload), "the later one is kept"
    forget(*second)
    with pytest.raises(ImageError, match="upload it again"):
        uploads.take(upload)


def test_the_page_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="pip install 'gradio"):
        app.main(["--onnx", "model.onnx"])


@pytest.mark.parametrize(("window", "answer"), [(None, "has float32 pixels"), ("auto", "Area")])
def test_a_window_of_values(tmp_path: Path, window: str | None, answer: str) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio (optional)")
    run, upload = tmp_path / "experiment" / "epochs_1", tmp_path / "hash" / "float.tif"
    write_run(run, write_vae(tmp_path / "vae"), "vae_model=tiny_vae")
    upload.parent.mkdir()
    cv2.imwrite(str(upload), np.random.default_rng(0).random((40, 40), np.float32))
    page = web_page.build_page(TorchBackend(*find_run(run)), 1, window)
    (take_up,) = (event.fn for event in page.fns.values() if event.name == "upload")
    assert answer in take_up(str(upload), False, 0.5)[2]
    assert answer in take_up(str(upload), False, 0.5)[2], "as by another page with the same file"
    _, state, gone = take_up(str(upload.with_name("a<b.tif")), False, 0.5)
    assert 'role="alert">a&lt;b.tif: is no longer here' in gone
    # neither threshold nor uncertainty replace the message
    (again,) = (event.fn for event in page.fns.values() if event.name == "again")
    assert gone == web_page.draw(state, 0.7) == again(state, True, 0.7)[1]


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "99999"), ("--max-mb", "0"), ("--max-megapixels", "-1")]
)
def test_impossible_numbers_are_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        app.parse_arguments(["--run", "x", option, value])
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listens", "headers", "refused"),
    [
        ("127.0.0.1", {"Host": "127.0.0.1:7860"}, ""),
        ("127.0.0.1", {"Host": "localhost:7860", "Origin": "http://LOCALHOST:7860"}, ""),
        ("127.0.0.1", {"Host": "[::1]:7860", "Origin": "http://[::1]:7860"}, ""),
        ("127.0.0.1", {"Host": "evil.example:7860"}, "is not 'evil.example:7860'"),
        ("127.0.0.1", {}, "is not ''"),
        ("127.0.0.1", {"Host": "[::1"}, "is not"),
        ("127.0.0.1", {"Host": "localhost:7860", "Origin": "http://localhost:80"}, "a page of"),
        ("127.0.0.1", {"Host": "localhost:7860", "Origin": "https://evil.example"}, "evil.example"),
        ("127.0.0.1", {"Host": "localhost:7860", "Origin": "null"}, "a page of 'null'"),
        ("Lab.example", {"Host": "lab.example", "Origin": "https://lab.example"}, ""),
        ("[::]", {"Host": "192.168.1.7:7860", "Origin": "http://192.168.1.7:7860"}, ""),
        ("[::]", {"Host": "[::]:7860"}, ""),
        ("::", {"Host": "lab.example:7860"}, ""),
        ("[fd00::5]", {"Host": "[fd00::5]:7860", "Origin": "http://[fd00::5]:7860"}, ""),
        ("FD00::5", {"Host": "[fd00::5]:7860"}, ""),
        ("[fd00::5]", {"Host": "[fd00::6]:7860"}, "is not '[fd00::6]:7860'"),
        ("0.0.0.0", {"Host": "any.example:80", "Origin": "http://any.example:80"}, ""),
        ("0.0.0.0", {"Host": "any.example:80", "Origin": "http://other.example"}, "other.example"),
        ("0.0.0.0", {"Host": "h.example:443", "Origin": "https://h.example"}, ""),
        ("0.0.0.0", {"Host": "h.example", "Origin": "https://h.example:443"}, ""),
        ("0.0.0.0", {"Host": "h.example:80", "Origin": "https://h.example"}, "a page of"),
        ("0.0.0.0", {"Host": "h.example", "Origin": "http://h.example:8000"}, "a page of"),
        ("0.0.0.0", {"Host": "h.example", "Origin": "other://h.example"}, "a page of"),
        ("0.0.0.0", {"Origin": "null"}, "a page of 'null'"),
        ("127.0.0.1", {"Host": "localhost:port"}, "is not"),
        (
            "127.0.0.1",
            {
                "Host": "127.0.0.1:7860",
                "Origin": "https://h.example",
                "X-Forwarded-Host": "H.example:443",
            },
            "",
        ),
        (
            "127.0.0.1",
            {"Host": "localhost", "Origin": "https://h.example", "X-Forwarded-Host": "h.example"},
            "",
        ),
    ],
)  # fmt: skip
def test_requests_of_other_sites_are_refused(
    listens: str, headers: dict[str, str], refused: str
) -> None:
    async def nothing(*_: object) -> None: ...

    sent = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    reason = refusal(sent, RefuseForeign(nothing, listens).hosts)
    assert bool(reason) == bool(refused) and refused in reason


@pytest.mark.parametrize(
    ("host", "server_name"),
    [("::", "[::]"), ("[::]", "[::]"), ("fd00::5", "[fd00::5]"), ("0.0.0.0", "0.0.0.0")],
)
def test_gradio_gets_ipv6_in_brackets(
    monkeypatch: pytest.MonkeyPatch, host: str, server_name: str
) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio (optional)")
    launched: list[dict[str, Any]] = []

    class Blocks:
        def launch(self, **options: Any) -> None:
            launched.append(options)
            raise OSError

    monkeypatch.setattr("engine.prediction.backends.open_backend", lambda _: None)
    monkeypatch.setattr("engine.prediction.backends.window_for", lambda *_: None)
    monkeypatch.setattr("engine.prediction.web_page.build_page", lambda *_: Blocks())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(UserError, match=f"cannot listen on {re.escape(host)} port"):
        app.main(["--onnx", "model.onnx", "--host", host])
    assert launched[0]["server_name"] == server_name
    assert os.environ["NO_PROXY"].endswith("," + server_name.strip("[]"))


def test_a_stop_while_it_starts_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio (optional)")

    def stopped(_: object) -> None:
        assert list(tmp_path.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("engine.prediction.backends.open_backend", stopped)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delenv("RANK", raising=False)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            exit_from(lambda: app.main(["--onnx", "model.onnx"]))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143 and not list(tmp_path.iterdir())


def test_only_this_machine_by_default() -> None:
    arguments = app.parse_arguments(["--run", "x"])
    assert arguments.host == "127.0.0.1"


@dataclass
class Page:
    """A running app.py."""

    process: subprocess.Popen[str]
    port: int
    temporary: Path
    run: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def files(self) -> list[str]:
        files = (path for path in self.temporary.rglob("*") if path.is_file())
        # torch 2.6 writes such a one as it is imported
        return [str(path) for path in files if not path.name.startswith("_remote_module_")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    pytest.importorskip("gradio", reason="the page needs gradio (optional)")
    run = tmp_path_factory.mktemp("experiment") / "epochs_1"
    write_run(run, write_vae(tmp_path_factory.mktemp("vae")), "vae_model=tiny_vae")
    temporary = tmp_path_factory.mktemp("temporary")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # as behind the proxy of a hospital, through which this machine cannot be reached
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9")
    proxy |= dict.fromkeys(("NO_PROXY", "no_proxy"), "")
    log = temporary.parent / "app.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--run", str(run), "--port", str(port), "--max-mb", "1"],
            cwd=ROOT,
            env=os.environ | proxy | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    end = time.monotonic() + START_SECONDS
    while f"127.0.0.1:{port}" not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    running = Page(process, port, temporary, run)
    yield running
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, log.read_text()
    assert not running.files(), "uploads were left behind"


def get(page: Page, path: str, **options: Any) -> tuple[int, bytes]:
    request = urllib.request.Request(page.address + path, **options)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def send(page: Page, name: str, content: bytes) -> tuple[int, bytes]:
    """Upload a file, as the page does before it asks for the result."""
    boundary = "b"
    body = (
        f"--{boundary}\r\nContent-Disposition: form-data; "
        f'name="files"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    ).encode() + content + f"\r\n--{boundary}--\r\n".encode()  # fmt: skip
    return get(
        page,
        "gradio_api/upload",
        data=body,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )


def segment(page: Page, upload: Path) -> bytes:
    """The events by which the page answers a request for the result of `upload`."""
    config = json.loads(get(page, "config")[1])
    (function,) = (entry["id"] for entry in config["dependencies"] if len(entry["outputs"]) == 3)
    call = {
        "data": [{"path": str(upload), "meta": {"_type": "gradio.FileData"}}, False, 0.5],
        "fn_index": function,
        "session_hash": "made-up",
    }
    get(
        page,
        "gradio_api/queue/join",
        data=json.dumps(call).encode(),
        headers={"Content-Type": "application/json"},
    )
    return get(page, "gradio_api/queue/data?session_hash=made-up")[1]


def test_the_server_is_closed(page: Page) -> None:
    """Reachable on this machine alone, without telemetry, API or files of the machine."""
    others = [
        address[4][0]
        for address in socket.getaddrinfo(socket.gethostname(), page.port, socket.AF_INET)
        if not str(address[4][0]).startswith("127.")
    ]
    for address in others:
        with pytest.raises(OSError), socket.create_connection((str(address), page.port), 2):
            pass
    config = json.loads(get(page, "config")[1])
    assert config["analytics_enabled"] is False
    assert not json.loads(get(page, "gradio_api/info")[1])["named_endpoints"]
    for path in (page.run / "config.yaml", ROOT / "app.py"):
        status, body = get(page, f"gradio_api/file={path}")
        assert status in (403, 404) and b"vae_model" not in body

    # a made-up upload that names a file of the machine is neither read nor deleted
    secret = page.run / "config.yaml"
    events = segment(page, secret)
    assert b'"success":false' in events and b"vae_model" not in events
    assert secret.is_file()

    for foreign in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert get(page, "gradio_api/upload", data=b"", headers=foreign)[0] == 403
    status, answer = send(page, "large.png", bytes(3 << 20))
    assert status == 413 and str(page.temporary).encode() not in answer


def test_an_upload_leaves_nothing_and_others_alone(page: Page) -> None:
    status, answer = send(page, "scan.png", cv2.imencode(".png", blob_case(1)[0])[1].tobytes())
    assert status == 200
    (upload,) = map(Path, json.loads(answer))
    arriving = (
        upload.parents[1] / "tmpanother"
    )  # as Gradio names an upload of which nothing came yet
    arriving.touch()
    try:
        assert b'"success":true' in segment(page, upload)
        assert page.files() == [str(arriving)]
    finally:
        arriving.unlink(missing_ok=True)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium without a display and without any network but this machine."""
    pytest.importorskip("selenium", reason="the browser test needs selenium")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("the browser test needs chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--window-size=1100,900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(chromedriver))
    browser.set_page_load_timeout(START_SECONDS)
    yield browser
    browser.quit()


def test_a_picture_in_the_browser(page: Page, browser: Any, tmp_path: Path) -> None:
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    redrawn = (NoSuchElementException, StaleElementReferenceException)
    picture = tmp_path / "scan one.png"
    cv2.imwrite(str(picture), cv2.resize(blob_case(1)[0], (90, 60)))
    assert predict.main(["--run", str(page.run), str(picture), "--out", str(tmp_path / "out")]) == 0
    row = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1].split(",")
    area = f"{int(row[4]):,} px, {float(row[5]):.2f} %"

    def wait(condition: Any) -> Any:
        return WebDriverWait(browser, WAIT_SECONDS, 0.5, redrawn).until(condition)

    def result() -> str:
        return browser.find_element(By.ID, "result").text

    def shown_before(browser: Any) -> str:
        script = "return getComputedStyle(document.getElementById('result'), '::before').content"
        return str(browser.execute_script(script))

    def upload(path: Path) -> None:
        field = wait(lambda d: d.find_element(By.CSS_SELECTOR, "#picture input[type=file]"))
        field.send_keys(str(path))

    browser.get(page.address)
    upload(picture)
    wait(lambda _: area in result())
    assert "scan one.png, 90 x 60 px" in result() and "uncertainty" not in result().lower()
    (size,) = wait(
        lambda d: d.execute_script(
            "const all = [...document.querySelectorAll('#result img')];"
            "return all.every(i => i.complete) && all.map(i => [i.naturalWidth, i.naturalHeight])"
        )
    )
    assert size == [90, 60]
    assert not page.files()

    browser.find_element(By.CSS_SELECTOR, "#uncertainty input").click()
    wait(lambda _: "Mean uncertainty" in result())
    assert len(browser.find_elements(By.CSS_SELECTOR, "#result img")) == 2
    before = result()

    browser.save_screenshot(str(Path(os.environ.get("SCREENSHOTS", tmp_path)) / "app.png"))

    def threshold_is_set(browser: Any) -> bool:
        number = browser.find_element(By.CSS_SELECTOR, "#threshold input[type=number]")
        number.send_keys(Keys.CONTROL, "a")  # lost where the field is drawn anew just then
        number.send_keys("0.99", Keys.ENTER)
        return bool(number.get_attribute("value") == "0.99")

    wait(threshold_is_set)
    wait(lambda _: "0 px, 0.00 %" in result())
    assert result() != before

    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:200])
    upload(broken)
    wait(lambda _: "broken.png: cannot be decoded" in result())
    role = browser.find_element(By.ID, "result").get_attribute("role")
    assert role == "status", "changes are read out"
    assert str(page.temporary) not in browser.page_source
    wait(lambda _: not page.files())

    requested = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert len(requested) > 3
    outside = [
        url for url in requested if not url.startswith((page.address, "data:", "blob:", "chrome"))
    ]
    assert not outside
    problems = [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"
    ]
    assert not problems

    # what the server refuses hides what was shown before
    large = tmp_path / "large.dat"
    large.write_bytes(bytes(2 << 20))
    upload(large)
    wait(lambda d: shown_before(d).startswith('"large.dat: no result yet'))
    assert not result()
    long_name = picture.rename(tmp_path / f"{'scan_of_one_patient_' * 4}.png")
    upload(long_name)
    wait(lambda _: f"{long_name.name}, 90 x 60 px" in result())
    assert shown_before(browser) == "none"

    # on a telephone, nothing runs off the screen
    browser.set_window_size(390, 844)
    inside = "e => e.getBoundingClientRect().right <= innerWidth"
    script = f"return [...document.querySelectorAll('#result *')].every({inside})"
    wait(lambda d: d.execute_script("return innerWidth <= 500") and d.execute_script(script))
