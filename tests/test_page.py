"""The page as it is read: on a phone, in the dark, on paper, by ear; whole or not."""

import html
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reports import HOSTILE, PERSONA, fill, folded, readings, run_record, starved
from steerheal.commands.report import ReportCommand
from steerheal.console import Console
from steerheal.records import Comparison, Internalisation, Reading, RunRecord
from steerheal.report import page, plates, theme
from steerheal.report.captions import direction

pytestmark = [pytest.mark.slow, pytest.mark.drawn]

VOID = {"meta", "br", "img", "link", "input", "hr"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDE = """<!doctype html><meta charset="utf-8"><body>
<iframe style="width:360px;height:4000px;border:0" srcdoc="{page}"></iframe>
<script>addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  const cells = [...page.querySelectorAll("th, td")].filter(cell => cell.closest("tbody"));
  const right = cells.map(cell => cell.getBoundingClientRect().right);
  document.body.dataset.seen = [page.documentElement.scrollWidth, Math.max(...right)].join(" ");
}});</script>"""


class Outline(HTMLParser):
    """Every element with its attributes and text; complains of a tag that does not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def a_run(**changes: Any) -> RunRecord:
    """Three rounds, the last starved, with a detail that a cell has no room for."""
    inside = Internalisation(contexts=4, cosine={12: 0.5, 13: math.nan}, share={12: 0.2, 13: 0.3})
    rows = (folded(0).model_copy(update={"internalised": inside}), folded(1), starved(2))
    return run_record(**{"rounds": rows, "best": 1, **changes})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = fill(tmp_path_factory.mktemp("page"), a_run())
    return page.write_report(folder).read_text(encoding="utf-8")


def test_nothing_is_told_on_hover_only(text: str) -> None:
    outline = Outline(text)
    assert not [tag for tag, attributes in outline.elements if "title" in attributes]
    said = " ".join(outline.said)
    for reason in (
        "steered was not evaluated: the round is starved",
        "round 1, cosine block 12: 0.5, block 13: –",
        "cut at the token limit",
        "nothing was folded",
    ):
        assert reason in said


def test_every_note_is_pointed_at_and_every_pointer_arrives(text: str) -> None:
    notes = set(re.findall(r'id="(note-[\d-]+)"', text))
    assert notes == set(re.findall(r'href="#(note-[\d-]+)"', text)) != set()


def test_ids_are_unique_and_every_link_has_a_target(text: str) -> None:
    ids = [attributes["id"] for _, attributes in Outline(text).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_every_heading_cell_says_what_it_heads_and_every_figure_speaks_its_numbers(
    text: str,
) -> None:
    elements = Outline(text).elements
    assert {attributes.get("scope") for tag, attributes in elements if tag == "th"} == {
        "col",
        "row",
    }
    labels = [attributes.get("aria-label") or "" for tag, attributes in elements if tag == "svg"]
    assert len(labels) == len(plates.PLATES)
    assert all(re.search(r"\d", label) for label in labels)


def test_every_cell_of_a_wide_table_carries_the_head_of_its_column(text: str) -> None:
    for table in re.findall(r'<table class="stack">.*?</table>', text, flags=re.S):
        assert "<td>" not in table
        assert all(re.findall(r'<td data-head="([^"]*)"', table))
    (course, *_) = re.findall(r'<table class="stack">.*?</table>', text, flags=re.S)
    assert 'data-head="healed trait (nats/token)"' in course


def test_colours_are_the_pages_own_and_follow_light_and_dark(text: str) -> None:
    variables = re.sub(r"--\w+:#[0-9a-f]{6};", "", text)
    assert not re.findall(r"(?:fill|stroke|color|background)[^;{}]*#[0-9a-f]{3,6}\b", variables)
    assert "@media screen and (prefers-color-scheme:dark)" in text
    (sheet,) = re.findall(r"<style>(.*?)</style>", text, flags=re.S)
    assert not re.findall(r"\b(?:white|black)\b(?!-)", sheet)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("side", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ink", ["ink", "soft", "steer", "heal", "accent"])
@pytest.mark.parametrize("ground", ["paper", "card", "tint"])
def test_text_stands_out_from_what_it_is_on(ink: str, ground: str, side: int) -> None:
    low, high = sorted(luminance(theme.PALETTE[name][side]) for name in (ink, ground))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_paper_holds_what_is_open_and_says_what_is_not_printed(text: str) -> None:
    assert "@media print" in text
    for section in re.findall(r"<section .*?</section>", text, flags=re.S):
        closed = [tag for tag in re.findall(r"<details[^>]*>", section) if " open" not in tag]
        hidden = re.findall(r'class="[^"]*screen-only', section)
        assert all("screen-only" in tag for tag in closed)
        assert not hidden or "Not printed: " in section


@pytest.mark.parametrize(("name", "damage"), [("shown.json", ""), ("scores.json", "{")])
def test_a_file_of_the_base_that_is_lost_or_broken_is_named_on_page_and_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    folder = fill(tmp_path, a_run(rounds=(), best=None))
    path = folder / "base" / name
    path.write_text(damage) if damage else path.unlink()
    ReportCommand(run=folder).do(Console(), lambda: None)
    said = capsys.readouterr()
    assert f"base/{name}" in said.err
    assert said.out.strip() == str(folder / "report.html")
    written = (folder / "report.html").read_text(encoding="utf-8")
    assert f"base/{name}" in written
    assert 'href="#missing"' in written
    assert str(tmp_path) not in written


@pytest.mark.parametrize(
    "name",
    [
        "completions.jsonl",
        "harvest.json",
        "heal.json",
        "steered.json",
        "healed.json",
        "shown-steered.json",
        "shown-healed.json",
    ],
)
def test_a_file_of_a_round_that_is_lost_is_named_and_nothing_else_is(
    tmp_path: Path, name: str
) -> None:
    folder = fill(tmp_path, a_run())
    assert page.lacking(folder, a_run()) == []
    (folder / "round-02" / name).unlink()
    (sentence,) = page.lacking(folder, a_run())
    assert f"round-02/{name}" in sentence


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"null", b"[" * 100_000])
@pytest.mark.parametrize("name", ["completions.jsonl", "heal.json", "shown-healed.json"])
def test_a_file_of_anything_else_is_named_without_a_traceback(
    tmp_path: Path, name: str, content: bytes
) -> None:
    folder = fill(tmp_path, a_run())
    (folder / "round-01" / name).write_bytes(content)
    (sentence,) = page.lacking(folder, a_run())
    assert f"round-01/{name}" in sentence
    assert "\n" not in sentence


def test_answers_and_completions_that_are_fewer_than_they_were_are_counted(tmp_path: Path) -> None:
    shows = {"show": [f"prompt {place}" for place in range(9)]}
    record = a_run(persona={**PERSONA, "prompts": shows})
    folder = fill(tmp_path, record)
    lines = folder / "round-01/completions.jsonl"
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:100]))
    said = page.lacking(folder, record)
    assert any("base/shown.json answers 8 of 9 show prompts" in sentence for sentence in said)
    assert any("round-01/completions.jsonl holds 100 of 144" in sentence for sentence in said)
    assert not any("comes from run.json" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("before", "after", "paired", "said"),
    [
        (0.7, 0.9, Reading(value=0.2, low=0.1, high=0.3), "rose"),
        (0.9, 0.7, Reading(value=-0.2, low=-0.3, high=-0.1), "fell"),
        (
            0.9,
            0.95,
            Reading(value=0.05, low=-0.1, high=0.2),
            "is not shown to have moved (its interval includes 0)",
        ),
        (0.9, 0.7, None, "fell (no paired interval)"),
        (0.7, 0.9, Reading(value=0.2), "rose (no paired interval)"),
        (0.9, 0.9, None, "stayed the same"),
        (math.nan, 0.9, Reading(value=0.2, low=0.1, high=0.3), "is unknown"),
    ],
)
def test_a_caption_names_a_direction_only_where_the_numbers_have_one(
    before: float, after: float, paired: Reading | None, said: str
) -> None:
    assert direction(before, after, paired) == said


def compared(mass: Reading, trait: Reading) -> Comparison:
    return Comparison(
        a="steered", b="healed", instrument="likelihood", n=8, delta_nats={}, delta_clr={},
        surgical=None, **readings(mass_change=mass, gain=trait),
    )  # fmt: skip


def test_the_trajectory_says_of_each_round_which_way_its_heal_went() -> None:
    up, down = (Reading(value=v, low=v - 0.05, high=v + 0.05) for v in (0.2, -0.2))
    flat = Reading(value=0.01, low=-0.05, high=0.07)
    rows = [
        folded(place).model_copy(update={"comparisons": (compared(mass, trait),)})
        for place, (mass, trait) in enumerate([(up, down), (down, flat), (up, down)])
    ]
    seen = plates.PLATES[0].seen(run_record(rounds=tuple(rows)))
    assert seen == (
        "From steered to healed, coherence rose in rounds 1 and 3, fell in round 2; the trait fell "
        "in rounds 1 and 3, is not shown to have moved (its interval includes 0) in round 2."
    )


def test_a_run_that_was_never_healed_draws_no_arrow_and_says_so() -> None:
    seen = plates.PLATES[0].seen(run_record(rounds=(starved(0),), best=None))
    assert "no arrow is drawn" in seen


def browse(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    quiet = ["background-networking", "component-update", "sync", "gpu"]
    line = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run"]
    line += [f"--disable-{name}" for name in quiet]
    line += [f"--user-data-dir={folder / 'profile'}", *options]
    return subprocess.run(line, capture_output=True, text=True, timeout=180, check=True)


def test_a_browser_shows_every_cell_within_360_pixels(tmp_path: Path, text: str) -> None:
    long = a_run(name="x" * 200, command="steerheal run " + "y" * 300, outcome=HOSTILE)
    other = page.write_report(fill(tmp_path / "long", long)).read_text(encoding="utf-8")
    for place, content in enumerate((text, other)):
        wrapper = tmp_path / f"{place}.html"
        wrapper.write_text(WIDE.format(page=html.escape(content)), encoding="utf-8")
        seen = browse(tmp_path, "--dump-dom", wrapper.as_uri()).stdout
        found = re.search(r'data-seen="([\d.]+) ([\d.]+)"', seen)
        assert found is not None
        assert max(float(found[1]), float(found[2])) <= 360


def test_a_browser_prints_three_rounds_on_six_pages(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    target = tmp_path / "report.pdf"
    browse(tmp_path, f"--print-to-pdf={target}", (tmp_path / "report.html").as_uri())
    pages = re.findall(rb"/Type\s*/Page\b(?!s)", target.read_bytes())
    assert 1 <= len(pages) <= 6
