"""report.html: what is in the file, and what a person can do with it in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from scoring.case_scores import score_cases
from scoring.metrics import CaseScores, dice, score_case
from scoring.report import ReportCase, write_report
from scoring.results import read_results, write_results
from utils.errors import UserError

HOSTILE = """</script><img src=x onerror="alert(1)">'&amp;"""
THRESHOLD = 0.37  # not one of the slider's regular steps in binary floating point


def make_case(index: int, name: str, size: tuple[int, int] = (48, 64)) -> ReportCase:
    """Every 10th case is missed, every 10th but one a false alarm, every 10th but two empty."""
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, size=(*size, 3), dtype=np.uint8)
    truth = np.zeros(size, bool)
    if index % 10 not in (8, 7):
        truth[size[0] // 4 : size[0] // 2, size[1] // 5 : size[1] // 2] = True
    blurred = cv2.GaussianBlur(np.roll(truth, index % 6, 1).astype(np.float32), (0, 0), 3)
    probability = np.clip(blurred + 0.1 * rng.standard_normal(size).astype(np.float32), 0, 1)
    probability[-3:, :5] = 0.29  # float32 rounds this one down
    if index % 10 in (9, 7):
        probability *= THRESHOLD * 0.9
    if index % 10 == 8:
        probability[:5, :5] = THRESHOLD  # on the threshold counts as predicted
    return ReportCase(name, image, truth, probability)


def names(count: int) -> list[str]:
    return [HOSTILE, *(f"case {index}" for index in range(1, count))]


def write(path: Path, cases: list[ReportCase], max_side: int = 512) -> dict[str, CaseScores]:
    scores = score_cases((case.name, case.probability >= THRESHOLD, case.truth) for case in cases)
    provenance = {"environment": {"name": "<tiny>"}}
    summary = write_results(path.parent, scores, provenance=provenance, leaked=["case 3"])
    write_report(
        path,
        iter(cases),
        scores=scores,
        summary=summary,
        title="A & B <c>",
        threshold=THRESHOLD,
        max_side=max_side,
    )
    return scores


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[Path, list[ReportCase]]:
    path = tmp_path_factory.mktemp("report") / "report.html"
    cases = [make_case(index, name) for index, name in enumerate(names(40))]
    write(path, cases)
    return path, cases


def test_file_is_complete_in_itself_and_escapes_names(report):
    text = report[0].read_text()
    assert "http:" not in text and "https:" not in text and "//cdn" not in text
    assert "{{" not in text
    assert HOSTILE not in text and "<img src=x" not in text
    assert "<title>A &amp; B &lt;c&gt;</title>" in text
    assert "&lt;tiny&gt;" in text
    assert len(re.findall(r'id="case-\d+"', text)) == 40


def test_summary_is_readable_without_javascript(report):
    text = report[0].read_text().split("<script")[0]
    summary = json.loads((report[0].parent / "summary.json").read_text())
    for description in (
        summary["metrics"]["DSC"],
        summary["without_leaked"]["metrics"]["DSC"],
    ):
        assert f"<td>{description['mean']:.4f}</td>" in text
        low, high = description["ci95"]
        assert f"{low:.4f} to {high:.4f}" in text
    for rule in ("diagonal", "zero", "detected"):
        assert f"<td>{summary['hd95'][rule]['mean']:.2f}</td>" in text
    assert f"<b>{summary['misses']}</b>" in text


def test_dice_of_the_cases_with_a_lesion_has_a_card_where_some_have_none(report, tmp_path):
    text = report[0].read_text().split("<script")[0]
    summary = json.loads((report[0].parent / "summary.json").read_text())
    found = summary["dice_with_lesion"]
    low, high = found["ci95"]
    assert (
        f"<span>Dice, with lesion</span><b>{found['mean']:.4f}</b>"
        f'<span class="soft">95 % {low:.4f} to {high:.4f}, 32 cases</span>' in text
    )
    assert '<b>4</b><span class="soft">of 8 without a lesion</span>' in text
    assert f'<th scope="row">Dice, with lesion</th><td>{found["mean"]:.4f}</td>' in text
    assert "8 of 40 cases have no lesion: where nothing is predicted in one, it counts" in text
    write(tmp_path / "report.html", [make_case(index, f"case {index}") for index in range(3)])
    assert "with lesion" not in (tmp_path / "report.html").read_text()


def test_missed_cases_have_a_bar_of_their_own(tmp_path):
    truth = np.zeros((48, 64), bool)
    truth[20, 20:30] = True
    cases = [ReportCase("missed", np.zeros((48, 64, 3), np.uint8), truth, np.zeros((48, 64)))]
    for shift in (0, 1, 20):  # the largest distance is a whole number
        probability = np.roll(truth, shift, 0).astype(np.float32)
        cases.append(replace(cases[0], name=f"by {shift}", probability=probability))
    write(tmp_path / "report.html", cases)
    bars = re.findall(
        r"<title>(\d+) with HD95 (\S+) to (\S+)</title>", (tmp_path / "report.html").read_text()
    )
    counts = {(float(low) <= 20 < float(high)): int(count) for count, low, high in bars}
    assert counts[True] == 1, bars
    assert bars[-1][:2] == ("1", "21"), bars


def picture_of(text: str, index: int, which: int) -> np.ndarray:
    """The image (0), truth (1) or steps (2) of a case in the page."""
    pictures = re.findall(rf'id="case-{index}">(.*?)</script>', text)[0].split()
    content = np.frombuffer(base64.b64decode(pictures[which]), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_UNCHANGED)


def test_the_page_holds_what_was_scored_and_which_cases_leaked(report):
    text = report[0].read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text)[0])
    by_name = {case.name: case for case in report[1]}
    assert [case[0] for case in data["cases"]] == sorted(by_name)
    assert [case[0] for case in data["cases"] if case[-1]] == ["case 3"]
    level = data["levels"].index(THRESHOLD)
    for index, (name, *_) in enumerate(data["cases"]):
        case = by_name[name]
        assert np.array_equal(picture_of(text, index, 1) > 0, case.truth)
        assert np.array_equal(
            picture_of(text, index, 2) > level, case.probability >= np.float32(THRESHOLD)
        ), name


@pytest.mark.parametrize("size", [(300, 600), (600, 300)])
def test_no_side_of_a_picture_is_longer_than_asked(tmp_path, size):
    write(tmp_path / "report.html", [make_case(1, "large", size)], max_side=200)
    text = (tmp_path / "report.html").read_text()
    for which in range(3):
        assert picture_of(text, 0, which).shape[:2] == (size[0] // 3, size[1] // 3)


def test_one_case_is_held_at_a_time(tmp_path):
    cases = [make_case(index, f"case {index}") for index in range(5)]
    scores = score_cases((c.name, c.probability >= 0.5, c.truth) for c in cases)
    summary = write_results(tmp_path, scores, provenance={})
    del cases
    last: list[weakref.ref] = []

    def stream() -> Iterator[ReportCase]:
        for index in range(5):
            case = make_case(index, f"case {index}")
            last.append(weakref.ref(case))
            yield case
            del case
            assert sum(ref() is not None for ref in last) <= 1

    write_report(tmp_path / "r.html", stream(), scores=scores, summary=summary, title="")


def nan_in(case: ReportCase) -> ReportCase:
    return replace(case, probability=np.full_like(case.probability, np.nan))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cases: cases[:-2], "no picture of 2 scored cases, such as 'case 4'"),
        (lambda cases: [*cases, cases[0]], "'case 0' is not among the scored cases, or twice"),
        (lambda cases: [replace(cases[0], image=cases[0].image[1:])], "must be of one size"),
        (lambda cases: [nan_in(cases[0])], "values that are not numbers"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_old_report_stays(tmp_path, spoil, message):
    path = tmp_path / "report.html"
    cases = [make_case(index, f"case {index}") for index in range(6)]
    scores = write(path, cases)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    summary = json.loads(before["summary.json"])
    with pytest.raises(UserError, match=message):
        write_report(path, spoil(cases), scores=scores, summary=summary, title="")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_report_of_nothing_is_refused(tmp_path):
    path = tmp_path / "report.html"
    write(path, [make_case(0, "case 0")])
    summary = read_results(tmp_path).summary
    with pytest.raises(UserError, match="no case to report"):
        write_report(path, [], scores={}, summary=summary, title="")


# in the browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no Chromium with its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1400,900",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


class Page:
    """The open report, in the words of its reader."""

    def __init__(self, browser, path: Path) -> None:
        self.browser = browser
        browser.get("about:blank")  # so that the same address is loaded afresh
        browser.get(path.as_uri())
        self.wait_until("return document.getElementById('live').dataset.dice")

    def run(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait_until(self, script: str, *arguments):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 240, 0.05).until(lambda _: self.run(script, *arguments))

    def element(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def listed(self, column: int = 0) -> list[str]:
        return self.run(
            "return [...document.querySelectorAll('#rows tr')]"
            ".map(row => row.children[arguments[0]])"
            ".map(cell => (cell.querySelector('.name span') || cell).textContent)",
            column,
        )

    def scores(self, column: int) -> list[float]:
        return list(map(float, self.listed(column)))

    def filter(self, text: str) -> None:
        self.run(
            "const s = document.getElementById('search'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'));",
            text,
        )

    def show(self, name: str) -> None:
        """Open a case and wait until its picture is there."""
        self.filter(name)
        self.run(
            "[...document.querySelectorAll('#rows td')].find(c => c.title === arguments[0]).click()",
            name,
        )
        self.wait_for(name)

    def wait_for(self, name: str) -> None:
        self.wait_until(
            "return document.getElementById('errors').ariaLabel.startsWith("
            "`Errors in ${arguments[0]}:`)",
            name,
        )

    def dice_at(self, threshold: float) -> float:
        """Move the slider, and read the live Dice."""
        return self.browser.execute_async_script(
            "const [threshold, done] = arguments;"
            "const data = JSON.parse(document.getElementById('data').textContent);"
            "const slider = document.getElementById('slider');"
            "slider.value = data.levels.indexOf(threshold);"
            "slider.dispatchEvent(new Event('input'));"
            "setTimeout(() => done(+document.getElementById('live').dataset.dice), 30);",
            threshold,
        )

    def press(self, key: str) -> None:
        from selenium.webdriver.common.keys import Keys

        self.browser.switch_to.active_element.send_keys(getattr(Keys, key))

    @property
    def opened(self) -> str:
        return self.element("#name").text


@pytest.fixture
def page(browser, report):
    page = Page(browser, report[0])
    yield page
    assert browser.get_log("browser") == [], "errors in the console"
    fetched = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


def test_opens_with_the_worst_case_first(page, report):
    assert page.scores(1) == sorted(page.scores(1))
    assert len(page.listed()) == 40
    assert page.opened == page.listed()[0]
    assert HOSTILE in page.listed()


def test_sorting_by_any_column_both_ways(page):
    for column, key in ((1, "DSC"), (3, "HD95"), (8, "Precision")):
        button = page.element(f"th[data-key={key}] button")
        page.run("arguments[0].click()", button)
        first = page.scores(column)
        page.run("arguments[0].click()", button)
        assert first in (sorted(first), sorted(first, reverse=True))
        assert page.scores(column) == sorted(first, reverse=first == sorted(first))
        assert page.element("th[aria-sort]").get_attribute("data-key") == key
    page.run("arguments[0].click()", page.element("th[data-key=Name] button"))
    numbered = [name for name in page.listed() if name != HOSTILE]
    assert numbered == [f"case {index}" for index in range(1, 40)]


def test_worst_first_and_best_first_know_which_way_a_metric_is_better(page):
    page.run("document.querySelector('th[data-key=HD95] button').click()")
    page.element("#best").click()
    assert page.scores(3) == sorted(page.scores(3))
    page.element("#worst").click()
    assert page.scores(3) == sorted(page.scores(3), reverse=True)
    assert page.opened == page.listed()[0]


def test_filtering_by_name_score_and_kind(page):
    page.filter("CASE 1")
    assert sorted(page.listed()) == sorted(["case 1", *(f"case {i}" for i in range(10, 20))])
    page.filter("dsc>=0.3 dsc<0.95")
    assert page.listed() and all(0.3 <= value < 0.95 for value in page.scores(1))
    page.filter("no such case")
    assert page.listed() == []
    assert page.element("#shown").text == "0 of 40 cases"
    page.filter("Jaccard<0.5")
    assert page.element("#shown").text == "0 of 40 cases: no score Jaccard<0.5; try DSC<0.5 HD95>20"
    page.filter("")
    for kind, digit in (("missed", 9), ("alarm", 8), ("normal", 7)):
        page.element(f"#kind option[value={kind}]").click()
        expected = [f"case {index}" for index in range(40) if index % 10 == digit]
        assert sorted(page.listed()) == sorted(expected)
    page.element("#kind option[value=leaked]").click()
    assert page.listed() == ["case 3"]


@pytest.mark.parametrize(
    ("text", "column", "limit"),
    [
        ("case  DSC < 0.5", 1, 0.5),
        ("Dice<0.5 case", 1, 0.5),
        ("dsc <50%", 1, 0.5),
        ("Sens.<0.9", 6, 0.9),
        ("sens < 90 %", 6, 0.9),
        ("HD95< 20", 3, 20),
    ],
)
def test_scores_are_filtered_however_they_are_written(page, text, column, limit):
    page.filter("")
    rows = zip(page.listed(), page.scores(column), strict=True)
    expected = [name for name, score in rows if score < limit and name.startswith("case")]
    page.filter(text)
    assert 0 < len(expected) < 39
    assert [name for name in page.listed() if name != HOSTILE] == expected


def test_long_names_hide_no_tag_and_stay_in_their_places(browser, tmp_path):
    long = "patient_0001_study_20231104_series_003_" * 2
    write(tmp_path / "report.html", [make_case(index, f"{long}{index}") for index in range(7, 10)])
    metrics = {"width": 1300, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page = Page(browser, tmp_path / "report.html")
    for tag in browser.find_elements("css selector", "#rows .tag"):
        cell = tag.find_element("xpath", "ancestor::td")
        assert tag.rect["x"] + tag.rect["width"] <= cell.rect["x"] + cell.rect["width"], tag.text
    assert len(browser.find_elements("css selector", "#rows .tag")) == 3
    for button in browser.find_elements("css selector", ".strip button"):
        assert button.rect["width"] == 96
    assert page.run("return list.scrollWidth <= list.clientWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_bar_lists_the_cases_it_counts(page):
    bars = page.run(
        "return [...document.querySelectorAll('[data-filter]')].map(bar => {"
        "bar.dispatchEvent(new MouseEvent('click', { bubbles: true }));"
        "return [bar.firstChild.textContent, document.getElementById('shown').textContent]; })"
    )
    assert len(bars) > 10
    for title, shown in bars:
        assert title.split()[0] == shown.split()[0], title


def test_slider_moves_dice_as_python_computes_it(page, report):
    for case in (report[1][4], report[1][8], report[1][9]):
        page.show(case.name)
        for threshold in (THRESHOLD, 0.005, 0.29, 0.5, 0.7, 1.0):
            expected = dice(case.probability >= threshold, case.truth)
            assert page.dice_at(threshold) == pytest.approx(expected, abs=1e-12), threshold
    page.show("case 4")
    assert len({page.dice_at(threshold) for threshold in (0.2, 0.5, 0.8)}) == 3
    page.element("#reset").click()
    page.wait_until("return document.getElementById('level').textContent === '0.37'")


def test_pictures_show_the_masks_and_their_errors(page, report):
    case = report[1][4]
    predicted = case.probability >= THRESHOLD
    page.show(case.name)

    def pixels(panel: str) -> np.ndarray:
        values = page.run(
            "const c = document.getElementById(arguments[0]);"
            "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data];",
            panel,
        )
        return np.array(values).reshape(48, 64, 4)

    assert np.array_equal(pixels("truth")[..., 0] > 0, case.truth)
    assert np.array_equal(pixels("prediction")[..., 0] > 0, predicted)
    red, _, blue, _ = np.moveaxis(pixels("errors"), 2, 0)
    assert (red > blue + 50)[predicted & ~case.truth].all()
    assert (blue > red + 50)[case.truth & ~predicted].all()
    false_positive, false_negative = (
        np.count_nonzero(mask) for mask in (predicted & ~case.truth, case.truth & ~predicted)
    )
    assert f"{false_positive} false positive and {false_negative} false negative" in (
        page.element("#errors").get_attribute("aria-label")
    )


def test_the_keyboard_alone_is_enough(page):
    order = page.listed()
    page.press("ARROW_RIGHT")
    page.wait_for(order[1])
    page.run("document.querySelector('#rows [tabindex=\"0\"]').focus()")
    for key, place in (("ARROW_DOWN", 2), ("ARROW_UP", 1), ("END", 39), ("HOME", 0)):
        page.press(key)
        page.wait_for(order[place])
        assert page.run("return document.activeElement.ariaSelected") == "true"
        assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    slider = page.element("#slider")
    before = float(page.element("#level").text)
    slider.send_keys("\ue014")  # right arrow: the threshold moves, the case stays
    page.wait_until("return +document.getElementById('level').textContent > arguments[0]", before)
    assert page.opened == order[0]


def test_worst_and_best_are_drawn_at_a_glance(page):
    page.run("document.querySelector('.strips').scrollIntoView()")
    page.wait_until(
        "return [...document.querySelectorAll('.strip button:nth-child(-n + 4) canvas')]"
        ".every(canvas => canvas.width === 64)"
    )
    worst = page.element("#worst-cases button").get_attribute("title")
    assert worst == page.listed()[0]
    best = page.element("#best-cases button")
    best_score = max(float(score) for score in page.scores(1) if float(score) < 1)
    assert float(best.find_elements("css selector", "span")[1].text) == best_score
    best.click()
    page.wait_for(best.get_attribute("title"))


def test_a_link_to_a_case_opens_it(page, report):
    page.browser.get("about:blank")
    page.browser.get(report[0].as_uri() + "#case%207")
    page.wait_for("case 7")


def test_a_link_to_no_case_opens_the_worst(page, report):
    for end in ("#50%", "#no case"):
        page.browser.get("about:blank")
        page.browser.get(report[0].as_uri() + end)
        assert page.opened == page.listed()[0]


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_is_wider_than_the_screen(page, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert page.run("return document.documentElement.scrollWidth") <= width
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_mode_is_dark_with_readable_text(page):
    def contrast(scheme: str) -> tuple[float, float]:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colours = page.run(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        )
        page_colour, ink = (sum(map(int, re.findall(r"\d+", c)[:3])) / 765 for c in colours)
        return page_colour, ink

    page_colour, ink = contrast("dark")
    assert page_colour < 0.15 and ink > 0.8
    page_colour, ink = contrast("light")
    assert page_colour > 0.9 and ink < 0.2


def test_large_pictures_are_reduced_and_the_page_says_so(browser, tmp_path):
    case = make_case(1, "large", (300, 600))
    write(tmp_path / "report.html", [case], max_side=200)
    page = Page(browser, tmp_path / "report.html")
    assert page.run("return [truth.width, truth.height]") == [200, 100]
    assert page.element("#reduced").is_displayed()
    exact = dice(case.probability >= THRESHOLD, case.truth)
    assert page.dice_at(THRESHOLD) == pytest.approx(exact, abs=0.05)


def test_two_thousand_cases_open_and_are_built_as_they_are_needed(browser, report, tmp_path):
    case = make_case(1, "", (24, 32))
    of_one = score_case(case.probability >= THRESHOLD, case.truth)
    scores = {f"case {i}": of_one | {"DSC": i * 7 % 2000 / 2000} for i in range(2000)}
    summary = json.loads((report[0].parent / "summary.json").read_text()) | {"count": 2000}
    cases = (replace(case, name=name) for name in scores)
    path = tmp_path / "report.html"
    write_report(path, cases, scores=scores, summary=summary, title="", threshold=THRESHOLD)
    page = Page(browser, path)
    assert page.element("#shown").text == "2000 of 2000 cases"
    assert len(page.listed()) < 200
    page.run("document.getElementById('list').scrollTop = 1e6")
    page.wait_until("return document.querySelectorAll('#rows tr').length >= 120")
    page.run("document.querySelector('#rows tr').focus()")
    page.press("END")
    page.wait_until("return document.querySelectorAll('#rows tr').length === 2000")
    assert page.scores(1) == sorted(page.scores(1))
    assert browser.get_log("browser") == []
