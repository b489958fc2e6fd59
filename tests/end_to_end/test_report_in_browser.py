"""The report in a real browser: it asks for nothing, its viewer shows the organs, its tables sort."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lampseg.cli import main
from tests.end_to_end.browser import Browser, browser
from tests.unit.fake_cases import make_cases
from tests.unit.fake_run import make_run

EVIL = "</script><script>window.stolen = 1</script>"
CLASSES = ("background", "BrainStem", EVIL, "<img src=x onerror='window.stolen = 1'>")
CASES = ("<img src=x onerror=window.stolen=1>", "case_b")
CANVAS = "#viewer canvas"
RESET = """(() => {
  const set = (control, kind, change) => { change(control); control.dispatchEvent(new Event(kind)) };
  const find = (selector) => document.querySelector(selector);
  if (find("[data-case]").value !== "0") set(find("[data-case]"), "change", (c) => c.value = "0");
  for (const box of document.querySelectorAll("[data-layer], [data-outline]"))
    set(box, "input", (c) => c.checked = c.dataset.layer === "prediction");
  set(find("[data-opacity]"), "input", (c) => c.value = "60");
  find("[data-view=axial]").click();
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by the command, with names that try to break out of it."""
    root = tmp_path_factory.mktemp("report")
    run = make_run(root / "run")
    data, predictions = make_cases(root, names=CASES, classes=CLASSES)
    main(["report", "--run", str(run), "--predictions", str(predictions), "--labels", str(data), "--viewer", *CASES])
    return run / "report.html"


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as started:
        started.call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )
        yield started


@pytest.fixture(scope="module")
def opened(chrome: Browser, page: Path) -> Browser:
    """The page with its viewer ready; opened once, as that takes seconds without a graphics card."""
    chrome.open(page)
    chrome.run("document.getElementById('viewer').scrollIntoView()")
    settled(chrome)
    return chrome


@pytest.fixture
def viewer(opened: Browser) -> Browser:
    """The same with the prediction of the first case in axial slices: drawing in 3D takes long."""
    opened.run(RESET)
    settled(opened)
    return opened


def settled(chrome: Browser) -> None:
    """Waits for the viewer to be done, one way or the other."""
    chrome.wait("['ready', 'failed'].includes(document.getElementById('viewer').dataset.state)")
    assert chrome.run("document.getElementById('viewer').dataset.state") == "ready", chrome.complaints


def click(chrome: Browser, selector: str) -> None:
    chrome.run(f"document.querySelector({selector!r}).click()")


def blue(chrome: Browser) -> int:
    """Pixels in the colour of class 1."""
    r, _, b = np.moveaxis(chrome.picture(CANVAS).astype(int), -1, 0)
    return int((b - r > 50).sum())


def orange(chrome: Browser) -> int:
    """Pixels in the colour of class 2."""
    r, _, b = np.moveaxis(chrome.picture(CANVAS).astype(int), -1, 0)
    return int((r - b > 50).sum())


def test_page_asks_for_nothing_and_complains_of_nothing(opened: Browser, page: Path) -> None:
    assert opened.run("document.getElementById('viewer').dataset.volumes") == "4", (
        "image, truth, prediction, differences"
    )
    assert min(blue(opened), orange(opened)) > 100
    fetched = [address for address in opened.requests if not address.startswith(("data:", "blob:"))]
    assert fetched == [page.resolve().as_uri()]
    assert opened.complaints == []


def test_layers_organs_and_opacity_change_what_is_seen(viewer: Browser) -> None:
    shown = blue(viewer), orange(viewer)
    assert min(shown) > 300, "the prediction of both organs"
    click(viewer, "[data-layer=prediction]")
    assert (blue(viewer), orange(viewer)) == (0, 0)
    click(viewer, "[data-layer=truth]")
    assert blue(viewer) > 300
    assert blue(viewer) != shown[0], "the truth lies elsewhere"
    click(viewer, "[data-layer=truth]")
    click(viewer, "[data-layer=differences]")
    assert blue(viewer) == 0
    assert orange(viewer) > 100, "missed and superfluous voxels are red and yellow"
    click(viewer, "[data-layer=differences]")
    click(viewer, "[data-layer=prediction]")
    assert (blue(viewer), orange(viewer)) == shown
    click(viewer, ".viewer-legend input")
    assert (blue(viewer) == 0, orange(viewer) > 300) == (True, True), "the first organ is switched off"
    click(viewer, ".viewer-legend input")
    viewer.run("(o => { o.value = 0; o.dispatchEvent(new Event('input')) })(document.querySelector('[data-opacity]'))")
    assert (blue(viewer), orange(viewer)) == (0, 0)


def test_outlines_leave_the_inside_free(viewer: Browser) -> None:
    filled = blue(viewer)
    click(viewer, "[data-outline]")
    assert 0 < blue(viewer) < 0.6 * filled


def test_right_is_on_the_left_as_in_the_slices(viewer: Browser) -> None:
    r, _, b = np.moveaxis(viewer.picture(CANVAS).astype(int), -1, 0)
    _, columns = np.nonzero(b - r > 50)
    assert columns.mean() < 0.45 * b.shape[1], "class 1 lies on the patient's right"


def test_an_organ_s_name_leads_to_it_and_the_place_is_told(viewer: Browser) -> None:
    place = "document.querySelector('.viewer-place').textContent"
    viewer.run("[...document.querySelectorAll('.viewer-legend .go')][1].click()")
    viewer.wait(f"{place}.includes('prediction: {EVIL}')")
    viewer.run("[...document.querySelectorAll('.viewer-legend .go')][0].click()")
    viewer.wait(f"{place}.includes('truth: BrainStem')")
    # In RAS the organ's middle is voxel (30 or 31, 16 or 17, 14 or 15); the file's first x is 0, its last -39.
    x, y, z = (float(part) for part in viewer.run(place).split(" mm")[0].split(", "))
    assert (x, y, z) == (pytest.approx(-8.5, abs=1), pytest.approx(16.5, abs=1), pytest.approx(29, abs=1.5))
    assert viewer.complaints == []


def test_another_case_and_other_views(viewer: Browser) -> None:
    rows = "document.querySelectorAll('.viewer-legend tbody tr')"
    before = viewer.run(f"[...{rows}].map(row => row.textContent)")
    viewer.run("(s => { s.value = '1'; s.dispatchEvent(new Event('change')) })(document.querySelector('[data-case]'))")
    settled(viewer)
    after = viewer.run(f"[...{rows}].map(row => row.textContent)")
    assert before[2] != after[2], "the third organ is in the second case only"
    assert blue(viewer) > 300
    for view in ("coronal", "sagittal", "render"):
        click(viewer, f"[data-view={view}]")
        assert viewer.picture(CANVAS).std() > 5, view
    assert viewer.complaints == []


def test_names_cannot_run_and_nothing_else_may(viewer: Browser) -> None:
    """The last to use the page: what it refuses, it complains of."""
    assert viewer.run("window.stolen === undefined")
    text = viewer.run("document.body.innerText")
    assert EVIL in text
    viewer.run(
        "(s => { s.textContent = 'window.stolen = 1'; document.body.append(s) })(document.createElement('script'))"
    )
    assert viewer.run("window.stolen === undefined"), "the page's policy refuses scripts that are not its own"
    assert any("Content Security Policy" in complaint for complaint in viewer.complaints)
    refused = viewer.run(
        "new Promise(done => { addEventListener('securitypolicyviolation', e => done(e.effectiveDirective)); "
        "fetch('https://example.org/').catch(() => {}) })"
    )
    assert refused == "connect-src"


def test_tables_sort_by_mouse_and_keyboard(viewer: Browser) -> None:
    table = (
        "[...document.querySelectorAll('table')].find(t => t.tHead && t.tHead.textContent.startsWith('organmean95'))"
    )
    column = f"[...({table}).tBodies[0].rows].map(row => row.cells[1].textContent)"
    original = viewer.run(column)
    assert original == ["0.800", "1.000", "0.000"]
    press = f"({table}).tHead.rows[0].cells[1].querySelector('button')"
    order = f"({table}).tHead.rows[0].cells[1].ariaSort"
    viewer.run(f"{press}.click()")
    assert (viewer.run(column), viewer.run(order)) == (["1.000", "0.800", "0.000"], "descending")
    viewer.run(f"{press}.focus()")
    for kind in ("keyDown", "keyUp"):
        viewer.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    assert (viewer.run(column), viewer.run(order)) == (["0.000", "0.800", "1.000"], "ascending")
    viewer.run(f"{press}.click()")
    assert (viewer.run(column), viewer.run(order)) == (original, "none")


def test_what_was_not_scored_stays_last(viewer: Browser) -> None:
    table = "[...document.querySelectorAll('table')].find(t => t.tHead && t.tHead.textContent.startsWith('case'))"
    column = f"[...({table}).tBodies[0].rows].map(row => row.cells[3].textContent)"
    press = f"({table}).tHead.rows[0].cells[3].querySelector('button').click()"
    assert viewer.run(column) == ["-", "0.000"]
    for _ in range(2):
        viewer.run(press)
        assert viewer.run(column) == ["0.000", "-"]


def test_dark_where_the_reader_wants_it(viewer: Browser) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    assert viewer.run(background) == "rgb(255, 255, 255)"
    viewer.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        assert viewer.run(background) != "rgb(255, 255, 255)"
    finally:
        viewer.call("Emulation.setEmulatedMedia", features=[])


def test_without_webgl_a_message_says_so_and_the_rest_is_there(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "browser", flags=["--disable-3d-apis"]) as chrome:
        chrome.open(page)
        chrome.run("document.getElementById('viewer').scrollIntoView()")
        chrome.wait("document.getElementById('viewer').dataset.state === 'failed'")
        assert "no WebGL2" in chrome.run("document.querySelector('.viewer-message').innerText")
        assert chrome.run("document.querySelectorAll('th button').length") > 5
        assert chrome.complaints == []
