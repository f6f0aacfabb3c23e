"""README.md says what the table and the committed rows say, and its commands exist."""

import re
from pathlib import Path

import pytest
from onepass.bench import int8_report, int8_rows, markdown, norm_report, norm_rows
from onepass.bench.rows import read_rows
from onepass.info import support_markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_support_table_is_the_op_tables():
    assert support_markdown() in README


def test_measured_tables_are_made_from_the_committed_rows():
    (path,) = (ROOT / "bench" / "results").glob("optim-*.jsonl")
    rows = read_rows(path)
    assert markdown.steps(rows) in README and markdown.phases(rows) in README
    assert markdown.amp(rows) in README
    assert path.name in README


def test_measured_tables_of_normalizations_are_made_from_the_committed_rows():
    paths = sorted((ROOT / "bench" / "results").glob("norm-*.jsonl"))
    assert paths
    for path in paths:
        assert norm_report.summary(norm_rows.read_rows(path)) in README, path.name
        assert path.name in README


def test_the_measured_table_of_layers_in_8_bits_is_made_from_the_committed_rows():
    path = ROOT / "bench" / "results" / "int8-zen3.jsonl"  # the older ones are of kernels before these
    assert int8_report.summary(int8_rows.read_rows(path)) in README
    assert path.name in README


@pytest.mark.parametrize(
    "page", ("README.md", "CONTRIBUTING.md", "bench/README.md", "docs/measured-facts.md")
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text())):
        assert f"\n{target}: " in makefile, target


def test_files_named_in_contributing_exist():
    named = re.findall(
        r"`((?:csrc|python|tests|docs|bench)/[\w./-]+\.\w+)`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    assert named
    for name in named:
        assert "NAME" in name or (ROOT / name).exists(), name


def test_the_diff_of_lion_is_real():
    diff = re.search(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    files = re.split(r"^\+\+\+ (\S+).*\n", diff, flags=re.MULTILINE)[1:]
    assert len(files) > 20
    for name, lines in zip(files[::2], files[1::2], strict=True):
        text = {line.strip() for line in (ROOT / name).read_text().splitlines()}
        for line in lines.splitlines():
            assert line[1:].strip() in text, f"{name}: {line}"
