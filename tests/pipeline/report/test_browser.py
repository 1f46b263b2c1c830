"""The report in a real browser: what clicks, keys and search do, and what hostile captions do not."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.report.report import Asked, make
from tests.support.reported import BROKEN, CONDITION, DROPPED, HOSTILE, SAMPLES, fill

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium: apt-get install chromium"),
]
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install playwright"
)
KEPT = SAMPLES - DROPPED - BROKEN
SLOW = 120_000  # milliseconds, for a machine that has much else to do
CONTRAST = """() => {
  const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 250) return c; }
    return rgba(getComputedStyle(document.body).backgroundColor); };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || ![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)} ${e.textContent.slice(0, 30)}`);
  }
  return bad;
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("browser") / "out")
    fill(out)
    return Path(make(out, Asked(captions="first", compare="second")).url).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=SLOW)
        yield started
        started.close()


@pytest.fixture
def opened(browser, url: str) -> Iterator:
    """Opens the report; at the end, nothing may have gone wrong in it, and nothing been fetched."""
    contexts, wrong, fetched = [], [], []

    def open_page(width: int = 1280, height: int = 900, **options: object):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(SLOW)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(url)
        page.wait_for_selector("[data-ready]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    assert {f for f in fetched if not f.startswith("data:")} == {url}


def count(page) -> int:
    """Of the samples that the current tab has found."""
    return int(page.inner_text("#count").split()[0])


def focused(page) -> str | None:
    return page.evaluate("document.activeElement.dataset.uid ?? document.activeElement.id")


def test_clicks_filter_and_clear(opened):
    page = opened()
    assert count(page) == KEPT
    bar = page.locator("#columns button.bar[aria-label^='repetitive: ']").first
    counted = int(bar.get_attribute("aria-label").split()[1])
    bar.click()
    assert bar.get_attribute("aria-pressed") == "true"
    assert 0 < count(page) <= counted < KEPT
    shown = page.locator("#panel-gallery .card")
    assert shown.count() == count(page)
    for card in shown.all():
        assert "repetitive" in card.inner_text()
    page.click("#filters .chip.on")
    assert count(page) == KEPT and bar.get_attribute("aria-pressed") == "false"


def test_search_finds_and_marks(opened):
    page = opened()
    page.keyboard.press("/")
    assert focused(page) == "search"
    page.keyboard.type("zebra 20")
    page.locator("#count:text('1 of')").wait_for()
    marks = page.locator("#panel-gallery mark").all_inner_texts()
    assert sorted(marks) == ["20", "20", "zebra"]  # one in the key
    page.keyboard.press("Escape")
    assert count(page) == KEPT


def test_hostile_captions_are_only_text(opened):
    page = opened()
    texts = page.evaluate(
        "DATA.rows.map((row) => row.texts.original.text).filter((text) => /[<\\u202e]/.test(text))"
    )
    assert set(texts) == set(HOSTILE)
    for text in HOSTILE:
        page.evaluate("(text) => search(text)", text.split()[0])
        cells = page.locator("#panel-gallery .text").all_inner_texts()
        assert any(text.split()[0] in cell for cell in cells), text
    for tab in ("dropped", "compare", "style"):
        page.click(f"#tab-{tab}")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[onerror], svg, a[href^='javascript']").count() == 0
    assert page.locator("script:not([type])").count() == 9


def test_the_policy_stops_what_would_be_injected(browser, url: str):
    """Were a caption to become markup, neither scripts nor requests would come of it."""
    with browser.new_context() as context:
        context.set_default_timeout(SLOW)
        page = context.new_page()
        page.goto(url)
        refused = page.evaluate(
            """() => { const seen = [];
            document.addEventListener('securitypolicyviolation', (e) => seen.push(e.violatedDirective));
            try { document.body.innerHTML += '<b>x</b>'; } catch (e) { seen.push(e.name); }
            const script = document.createElement('script'); const image = new Image();
            image.src = 'https://example.org/x.png'; document.body.append(image);
            try { script.textContent = 'window.hacked = 1'; document.body.append(script); } catch (e) { seen.push(e.name); }
            return new Promise((done) => setTimeout(() => done(seen), 500)); }"""
        )
        assert "TypeError" in refused and "img-src" in refused
        assert page.evaluate("window.hacked") is None


def test_the_dropped_tab_says_why(opened):
    page = opened()
    page.click(f"#funnel button:has-text('{CONDITION}')")
    assert page.get_attribute("#tab-dropped", "aria-selected") == "true"
    assert count(page) == DROPPED
    card = page.locator("#panel-dropped .card").first.inner_text()
    assert CONDITION in card and "short_tokens " in card
    page.click("#panel-dropped .chip:has-text('every reason')")
    assert count(page) == DROPPED + BROKEN


def test_two_runs_stand_side_by_side(opened):
    page = opened()
    page.click("#tab-compare")
    assert count(page) == SAMPLES - BROKEN
    pair = page.locator("#panel-compare .pair").first
    assert pair.locator(".caption").count() == 2
    assert pair.locator("mark").all_inner_texts() == ["it", "is"]
    page.click("#tab-style")
    assert page.locator("#panel-style .style-run").count() == 2


def test_keys_walk_open_and_close(opened):
    page = opened()
    first, second = page.evaluate(
        "DATA.rows.filter((row) => row.step === null).slice(0, 2).map((row) => row.uid)"
    )
    page.keyboard.press("j")
    assert focused(page) == first
    page.keyboard.press("ArrowDown")
    assert focused(page) == second
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    assert page.locator("#detail[open]").inner_text().count(first) == 1
    page.keyboard.press("ArrowRight")
    assert second in page.inner_text("#detail")
    page.keyboard.press("Escape")
    assert page.locator("#detail[open]").count() == 0 and focused(page) == first
    page.keyboard.press("2")
    assert page.get_attribute("#tab-dropped", "aria-selected") == "true"
    page.focus("#tab-dropped")
    page.keyboard.press("ArrowLeft")
    assert focused(page) == "tab-gallery"


def test_the_key_is_copied(opened):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    key = page.locator("#panel-gallery .card code").first.inner_text()
    page.locator("#panel-gallery .copy").first.click()
    page.locator("#said:not(:empty)").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == key


def test_a_phone_needs_no_sideways_scrolling(opened):
    page = opened(390, 844)
    page.click("#columns summary")
    for tab in ("gallery", "dropped", "compare", "style"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(opened, scheme: str):
    page = opened(color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(19, 20, 24)") == (scheme == "dark")
    for tab in ("gallery", "dropped", "compare", "style"):
        page.click(f"#tab-{tab}")
        assert page.evaluate(CONTRAST) == []


def test_the_theme_can_be_chosen(opened):
    page = opened(color_scheme="light")
    for _ in range(2):
        page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 24)"


def test_whatever_can_be_used_has_a_name_and_few_stops(opened):
    page = opened()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, img, [role]')].filter((e) => e.checkVisibility()
        && !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.alt || e.labels?.length
             || e.textContent.trim() || e.getAttribute('role') === 'status')).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    for figure in page.locator("#columns figure").all():
        assert figure.locator("button[tabindex='0']").count() <= 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
