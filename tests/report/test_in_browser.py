"""The pages in a real browser: no error in its console, nothing wider than a small screen, every number displayed.

Needs Debian's `chromium` or another Chromium on the path; tests are skipped without one.
"""

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from soda_dist.data.storage.folder import open_folder
from soda_dist.report.comparison import write_comparison
from soda_dist.report.page import write_report
from tests.report.evaluated_runs import ROWS, dci, gso, imagenet
from tests.report.html_page import HtmlPage, missing_numbers

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on the path: apt-get install chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
WIDTHS = (400, 1000, 1600)
PROBE = """<!doctype html><title>probe</title><body><script>
const widths = %s, found = {};
let left = widths.length;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
  frame.onload = () => {
    const inner = frame.contentDocument;
    for (const each of inner.querySelectorAll("details")) each.open = true;
    const wide = [...inner.querySelectorAll("main *")].filter((each) =>
      each.getBoundingClientRect().right > width + 1 && !each.closest(".scroll, .picture, pre, svg"));
    found[width] = {scroll: inner.documentElement.scrollWidth,
                    wide: wide.slice(0, 5).map((each) => each.tagName + "." + each.className)};
    if (--left === 0) document.title = JSON.stringify(found);
  };
  frame.srcdoc = %s;
  document.body.append(frame);
}
</script>"""
"""Opens a page in frames of several widths, unfolds it, and puts into the title what reaches beyond them."""


class _Title(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.title = self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag

    def handle_data(self, data: str) -> None:
        if self._tag == "title" and not self.title:
            self.title = data


def _opened(page: Path, place: Path) -> tuple[str, list[str]]:
    """The page as the browser holds it after loading, and the lines of its console."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={place}", "--enable-logging=stderr", "--log-level=0",
               "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with wide tables, long names, curves, pictures and an older step."""
    place = tmp_path_factory.mktemp("a-run-with-a-long-name-" + "x" * 40)
    uri = gso(place)
    folder = open_folder(uri)
    wide = {"attributes": {f"attribute {n}": {f"k{k}": n + k / 7 for k in range(30)} for n in range(20)}}
    folder.write_json("eval/1000/latents.json", {"task": "latents", **wide})
    for step in (500, 1000):
        scores = dci(ROWS["gso"], step / 2017, 0.5, 0.9) | {"metric": "disentanglement", "factors": ["a", "b"]}
        folder.write_json(f"eval/{step}/dci.json", {"task": "dci", **scores})
    lines = [{"step": n, "loss": 1 / n, "lr": 1e-3, "validation_loss": 2 / n} for n in range(1, 60)]
    folder.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    start = {"time": "2024-01-01T00:00:00Z", "command": f"pretrain.py --preset gso {'y' * 300}", "commit": "0" * 40}
    folder.write_json("provenance.json", [start, start])
    write_report(uri)
    return Path(uri)


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A report, and a comparison of two runs."""
    out = tmp_path_factory.mktemp("out")
    compared = write_comparison([str(run), imagenet(out)], "3", "html", "latest", str(out))
    return [run / "report.html", Path(compared)]


def test_the_browser_shows_every_number_and_complains_of_nothing(run: Path, tmp_path: Path) -> None:
    text, console = _opened(run / "report.html", tmp_path / "profile")
    assert console == []
    assert missing_numbers(run, HtmlPage(text)) == []


def test_nothing_is_wider_than_the_window(pages: list[Path], tmp_path: Path) -> None:
    for page in pages:
        probe = tmp_path / "probe.html"
        text = json.dumps(page.read_text()).replace("</", "<\\/")
        probe.write_text(PROBE % (json.dumps(WIDTHS), text))
        found, console = _opened(probe, tmp_path / "profile")
        assert console == []
        measured = json.loads(_Title(found).title)
        assert {int(width): each["wide"] for width, each in measured.items()} == {width: [] for width in WIDTHS}
        assert {int(width): each["scroll"] for width, each in measured.items()} == {width: width for width in WIDTHS}


def test_a_page_that_is_too_wide_or_broken_is_found(tmp_path: Path) -> None:
    page = tmp_path / "probe.html"
    wide = json.dumps('<main><div style="width: 900px">x</div></main>')
    page.write_text(PROBE % (json.dumps(WIDTHS), wide) + "<script>console.error('no')</script>")
    found, console = _opened(page, tmp_path / "profile")
    measured = json.loads(_Title(found).title)
    assert measured["400"]["wide"] == ["DIV."] and measured["1600"]["wide"] == [] and len(console) == 1
