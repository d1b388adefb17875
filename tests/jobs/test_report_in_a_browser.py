"""The report in a real browser: nothing is loaded, nothing complains, nothing is cut off or overlaps.

Costs about 20 s: it trains ten steps, and lays two pages out in two widths and two themes.
"""

import dataclasses
import shutil

import pytest
from reports import evaluation_line, line, logged_run, step_line, trained_run
from runs import CONFIG

from jobs import report

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]
LONG = "a class whose name is so long that no phone shows it in one line, nor a table in one of its cells"
LONG_RUN = "a-run-with-" + "a-long-name-" * 8
WORKERS = [
    line("start", 10, step=0, world_size=2),
    *(step_line(step, 10 + step, [2.0 / step], learning_rate=1e-5 * step) for step in range(1, 40)),
    evaluation_line(20, 35, 0.4),
    evaluation_line(39, 55, 0.6),
    line("start", 70, step=39, world_size=1),
    line("stop", 80, step=39),
]
LAUNCHES = [
    line("launch", 0, num_workers=2),
    line("lost", 60, cause="the node 10.11.12.13 died: " + "/very/long/path" * 8, step=39),
    line("stop", 79),
]

# What is wrong with the layout, as text. Boxes of neighbours may touch; a pixel is rounding.
FAULTS = """() => {
  const faults = [], width = document.documentElement.clientWidth;
  const shown = element => element.checkVisibility() && element.getBoundingClientRect().width > 0;
  const named = element => element.tagName.toLowerCase() + "." + (element.getAttribute("class") || "") + " '" +
    element.textContent.trim().slice(0, 40) + "'";
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  if (document.documentElement.scrollWidth > innerWidth) faults.push("the page is wider than the window");
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode;
    if (!node.textContent.trim() || !shown(node.parentElement)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.left < -1 || box.right > width + 1) faults.push("outside the window: " + named(node.parentElement));
  }
  for (const element of document.body.querySelectorAll("*")) {
    if (!shown(element) || element.closest("svg") || element.getAttribute("aria-hidden")) continue;
    const style = getComputedStyle(element);
    if (style.overflowX !== "visible" && element.scrollWidth > element.clientWidth + 1)
      faults.push("cut off: " + named(element));
    if (style.display !== "inline" && element.scrollWidth > element.clientWidth + 1 && element.clientWidth)
      faults.push("wider than its box: " + named(element));
    const siblings = [...element.children].filter(child => shown(child) && !child.getAttribute("aria-hidden") &&
      getComputedStyle(child).display !== "inline");
    const columns = style.columnWidth !== "auto";
    siblings.forEach((child, index) => siblings.slice(index + 1).forEach(other => {
      if (!columns && overlap(child.getBoundingClientRect(), other.getBoundingClientRect()))
        faults.push("overlap: " + named(child) + " and " + named(other));
    }));
  }
  for (const svg of document.querySelectorAll("svg")) {
    if (!shown(svg)) continue;
    const frame = svg.getBoundingClientRect(), labels = [...svg.querySelectorAll("text")];
    const boxes = labels.map(label => label.getBoundingClientRect());
    boxes.forEach((box, index) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
          box.bottom > frame.bottom + 1) faults.push("outside its chart: " + named(labels[index]));
      boxes.slice(index + 1).forEach((other, place) => {
        if (overlap(box, other)) faults.push("labels overlap: " + named(labels[index]) + " and " +
          named(labels[index + 1 + place]));
      });
      if (parseFloat(getComputedStyle(labels[index]).fontSize) * frame.width / svg.viewBox.baseVal.width < 9.5)
        faults.push("too small to read: " + named(labels[index]));
    });
  }
  return faults;
}"""

# Contrast of each text with what is behind it (WCAG 2.2), where it is below 4.5.
FAINT = """() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = color => {
    const [r, g, b] = color.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("p, dt, dd, li, h1, h2, h3, th, td, a, span, strong, text")) {
    if (!element.checkVisibility() || !element.textContent.trim()) continue;
    const style = getComputedStyle(element);
    const front = luminance(rgba(element.tagName === "text" ? style.fill : style.color).slice(0, 3));
    const back = luminance(behind(element).slice(0, 3));
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (contrast < 4.5) faint.push(contrast.toFixed(2) + " " + element.textContent.trim().slice(0, 40));
  }
  return faint;
}"""

# Figures of the table of results that take more than one line.
BROKEN = """() => [...document.querySelectorAll(".results td[data-label]:not(:last-child)")].filter(cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return new Set([...range.getClientRects()].map(box => box.top)).size > 1;
}).map(cell => cell.textContent)"""


@pytest.fixture(scope="module")
def pages(raw_dataset, tmp_path_factory) -> dict[str, str]:
    """A report of one run, and one of two, as addresses."""
    folder = tmp_path_factory.mktemp("pages")
    run = trained_run(folder / "trained", raw_dataset)
    config = run.path / "config.json"
    config.write_text(config.read_text().replace('"class 2"', f'"{LONG}"'))
    other = dataclasses.replace(CONFIG, name="a" * 80, seed=1)
    logged_run(folder / LONG_RUN, raw_dataset, WORKERS, LAUNCHES, config=other)
    arguments = {"one": [str(run.path)], "two": [str(run.path), str(folder / LONG_RUN)]}
    for name, runs in arguments.items():
        assert report.main([*runs, "-o", str(folder / f"{name}.html")]) == 0
    return {name: (folder / f"{name}.html").as_uri() for name in arguments}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])  # root has no sandbox
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def theme(request) -> str:
    return request.param


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", ["one", "two"])
def test_nothing_complains_and_nothing_is_cut_off(name, width, theme, pages, browser):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name])
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[name]]
    assert page.evaluate(FAULTS) == []
    assert page.evaluate(FAINT) == []
    assert page.evaluate(BROKEN) == []
    is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)"
    assert is_dark == (theme == "dark")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    context.close()


@pytest.mark.parametrize(
    ("style", "fault"),
    [
        ("h1 { white-space: nowrap; width: 3000px; }", "the page is wider"),
        (".tile .figure { margin-left: -200px; }", "outside the window"),
        (".tile + .tile { margin-left: -60px; }", "overlap"),
        (".what { overflow: hidden; white-space: nowrap; flex: 0 0 20px; }", "cut off"),
        ("svg text { font-size: 30px !important; }", "labels overlap"),
        ("svg { max-width: 150px; }", "too small"),
    ],
)
def test_the_checks_find_what_they_look_for(style, fault, pages, browser):
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(pages["one"])
    page.add_style_tag(content=style)
    assert any(fault in found for found in page.evaluate(FAULTS))
    page.close()
