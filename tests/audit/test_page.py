"""The page of an audit: complete, self-contained, readable without pictures, and without any name."""

import base64
import re
from html.parser import HTMLParser

import pytest
from made_up_audits import made_up
from markdown_it import MarkdownIt

from gs_lora_peft.audit import format_audit
from gs_lora_peft.audit.page import facts_table, full_table, shown_table, summary_table

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects what a page refers to, its pictures, and elements that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.links, self.pictures, self.open, self.headings, self.text = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [value for name, value in attributes if name in ("href", "src", "action", "srcset", "data")]
        if tag == "img":
            self.pictures.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    made_up().save(folder)
    return Page((folder / "report.html").read_text("utf-8"))


def test_the_page_needs_nothing_else(page):
    """Every picture is in the file, has a text instead of it, and nothing is loaded or linked from elsewhere."""
    assert page.open == []
    assert len(page.pictures) == 3
    for picture in page.pictures:
        assert len(picture["alt"]) > 30
        kind, _, content = picture["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content).startswith(b"\x89PNG")
    assert not [link for link in page.links if not link.startswith("data:image/png")]


def test_the_verdict_comes_first(page):
    text = " ".join("".join(page.text).split())
    assert text.index(made_up().verdict) < text.index("Recovery gap") < text.index("The result")
    assert page.headings == [
        "Is it gone, or only silent?",
        "The result",
        "How to read it",
        "What was attacked, and with what",
        "What was not attacked",
        "Models and set-up",
        "All figures",
    ]
    for said in ("+20.0 ± 2.3 points", "task_002", "quick audit", "Seed of all draws: 7", "class-agnostic recall"):
        assert said in text
    # The probe at 7 places and one more, relearning, membership and the answer.
    assert "the largest of N = 11 judged figures. Its ± is that of this one figure" in text
    assert "largest of N figures is larger by chance" in text
    for said in ("shots 1, 4; draws 10", "classes, forgotten", "has the weights", "2.13.0"):
        assert said in text


def test_the_markdown_page_refers_to_the_files_beside_it(tmp_path):
    files = made_up().save(tmp_path)
    markdown = (tmp_path / "report.md").read_text("utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    named = [child.attrs["src"] for token in tokens for child in token.children or () if child.type == "image"]
    assert named == [file.name for file in files if file.suffix == ".png"]
    assert not re.search(r"[{}]{2}|None\b|Undefined|\n\n\n", markdown)


@pytest.mark.parametrize("report", [made_up(references=1), made_up(quick=False), made_up(tasks=())])
def test_pages_of_all_kinds_are_whole(tmp_path, report):
    report.save(tmp_path)
    markdown = (tmp_path / "report.md").read_text("utf-8")
    assert not re.search(r"[{}]{2}|None\b|Undefined|\n\n\n", markdown)
    assert not re.search(r"[^\n]\n</details>", markdown)  # it would be a row of the table before it
    assert ("quick audit" in markdown) is report.facts["quick"]


def test_what_noise_alone_gives():
    """Each reference beside the others; unknown with a single one."""
    assert sorted(made_up().reference_gaps) == pytest.approx([0.0, 1.5, 3.0])
    assert made_up(references=1).reference_gaps == []


def test_tables():
    """The worst setting of each judged attack, the largest excess first; and every figure of an attack."""
    report = made_up()
    rows = summary_table(report).rows
    assert [row[0] for row in rows] == ["linear probe", "relearning", "membership", "the head's answer"]
    assert rows[0][2:] == ["98.0", "80.0", "60.0 (58.0 to 62.0)", "+20.0 ± 2.3"]
    full = full_table(report, report.attacks[1])
    assert [row[:2] for row in full.rows][4] == ["among all, 4-shot", "block 5"]
    assert full.rows[4][2] == "98.0 (96.0 to 100.0)"
    assert len(full.rows) == 8
    similarity = full_table(report, report.attacks[5])
    assert (similarity.rows[0][2], similarity.rows[0][-1]) == ("0.90 (0.00 to 2.90)", "–")
    assert [row[:4] for row in shown_table(report).rows] == [
        ["the adapters left off", "all classes", "–", "98.0 (96.0 to 100.0)"]
    ]
    (further,) = facts_table(report, report.attacks[2]).rows
    assert further == [
        *("4 images, all weights", "–", "steps to half of the original"),
        *("20", "20", "never", "never", "never"),
    ]


def test_in_a_terminal():
    text = format_audit(made_up())
    lines = text.splitlines()
    assert lines[0] == "Recovered of the forgotten classes, in points"
    assert lines[4].startswith("linear probe")
    assert text.index(made_up().verdict) > text.index("membership")
    assert "class-agnostic recall" in text
