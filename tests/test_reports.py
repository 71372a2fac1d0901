"""Reports of a verification: the HTML page with its heatmaps, and JUnit XML."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from backend_parameters import random_model
from padded_batch import INPUTS

from pegasusx_ref import PegasusXConfig, verify
from pegasusx_ref.tracing.trace_points import TRACE_POINTS
from pegasusx_ref.verification import Check, Report, from_backend
from pegasusx_ref.verification.checking.comparison import ELEMENT_FAIL
from pegasusx_ref.verification.checking.valid_rows import ValidRows
from pegasusx_ref.verification.reports import as_html, as_junit
from pegasusx_ref.verification.reports.heatmaps import Heatmap, Strip, worst_spots
from pegasusx_ref.verification.reports.svg import FIRST_FAILING, LEVELS, binned, draw
from pegasusx_ref.verification.verdicts import FAIL, Coverage, Finding, RowErrors

pytestmark = pytest.mark.slow

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)  # blocks of 8, 4 global tokens, 4 heads
EDGES = {0: [8, 16, 24], 1: [4, 12, 20, 28]}  # by layer; the second one is staggered
MODEL = random_model(CONFIG, 0)
TENSORS = dict(from_backend(random_model(CONFIG, 0, "numpy", "float32"))(INPUTS))
VOID = {"meta", "input"}


def report_of(**changed: np.ndarray) -> Report:
    return verify(MODEL, TENSORS | changed, INPUTS, "float32")


def off_by(name: str, index: tuple[int, ...], error: float) -> dict[str, np.ndarray]:
    """Return a tensor with one wrong element, off by a fraction of its size."""
    tensor = TENSORS[name].astype(np.float64)
    tensor[index] += error * max(1.0, abs(tensor[index]))
    return {name: tensor}


class Page(HTMLParser):
    """A parsed page: checks that tags match, and collects ids, links and pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.pictures = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if "strip" in svg]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        for name, value in attributes:
            assert not name.startswith("on")
            assert name not in {"src", "srcset", "style"}
            self.ids += [value or ""] if name == "id" else []
            self.links += [value or ""] if name.endswith("href") else []
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def cells(picture: ET.Element, axis: str) -> np.ndarray:
    """Parse the levels from the paths; -1 where nothing is drawn."""
    (strip,) = picture.findall(f".//g[@data-axis='{axis}']")
    found = np.full((64, 600), -1)
    for path in strip.findall("path"):
        if (level := path.get("class", "")).startswith("level-"):
            for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path.get("d", "")):
                row = found[int(y), int(x) : int(x) + int(width)]
                assert (row == -1).all(), "a cell is drawn twice"
                row[:] = int(level.removeprefix("level-"))
    return found


def edges(picture: ET.Element, kind: str) -> list[float]:
    """Parse the positions of the lines."""
    (strip,) = picture.findall(".//g[@data-axis='position']")
    rows = int(strip.get("data-rows-per-cell", ""))
    drawn_edges = [path.get("d", "") for path in strip.findall("path") if path.get("class") == kind]
    return [float(x) * rows for d in drawn_edges for x in re.findall(r"M([\d.]+) 0v", d)]


# --- the page --------------------------------------------------------------------------------------------------------

WRONG = off_by("encoder.layers.1.self_attn.local.2.scores", (0, 3, 5, 1), 1e-3)
REPORTS = {"passing": report_of(), "failing": report_of(**WRONG)}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_the_page_is_complete_and_self_contained(report: Report) -> None:
    html = as_html(report, "candidate")
    assert html.startswith("<!DOCTYPE html>")
    page = Page(html)
    assert not re.search(r"https?:|url\(|@import", html)
    assert len(page.ids) == len(set(page.ids))
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert page.pictures
    for check in report.table:
        assert f'<th scope="row">{check.name}</th>' in html


def test_the_page_starts_with_the_first_failure_and_its_diagnosis() -> None:
    name = "encoder.layers.1.tokens.activation"
    later = off_by("decoder.layers.0.fc1", (0, 2, 3), 1e-2)
    html = as_html(report_of(**{name: TENSORS["encoder.layers.1.tokens.fc1"]}, **later))
    main = html[html.index("<main>") :]
    first_named, figure = main.index("<code>"), main.index("<figure>")
    assert main[first_named:].startswith(f"<code>{name}</code>")
    diagnosis = re.search(r"<strong>the activation is missing</strong>: explains 1 ± \S+ of the error", main)
    assert diagnosis is not None
    assert first_named < diagnosis.start() < figure < main.index("decoder.layers.0.fc1")


def test_a_diagnosis_that_was_not_fitted_has_no_coefficient() -> None:
    report = report_of(**{"encoder.layers.1.tokens.activation": TENSORS["encoder.layers.1.tokens.fc1"]})
    report.diagnoses[0] = report.diagnoses[0]._replace(coefficient=float("nan"))
    assert "<dd><strong>the activation is missing</strong></dd>" in as_html(report)


@pytest.mark.parametrize(
    ("name", "index", "axis", "cell"),
    [
        ("encoder.layers.0.self_attn.local.1.probs", (0, 2, 5, 6), "position", (2, 13)),
        ("encoder.layers.1.self_attn.local.0.scores", (0, 0, 3, 1), "position", (0, 3)),
        ("encoder.layers.1.self_attn.local.2.context", (1, 3, 4, 1), "position", (3, 16)),
        ("encoder.layers.1.self_attn.global.scores", (0, 1, 2, 20), "global token", (1, 2)),
        ("encoder.layers.0.tokens.fc1", (0, 17, 9), "position", (0, 17)),
        ("encoder.layers.0.globals.fc1", (1, 3, 9), "global token", (0, 3)),
        ("encoder.layer_norm", (0, 28, 0), "position", (0, 28)),
        ("decoder.layers.1.encoder_attn.probs", (0, 2, 4, 11), "target position", (2, 4)),
        ("decoder.layers.1.encoder_attn.k_proj", (1, 11, 4), "position", (0, 11)),
        ("lm_head", (1, 5, 200), "target position", (0, 5)),
    ],
)
def test_one_wrong_element_is_one_cell(name: str, index: tuple[int, ...], axis: str, cell: tuple[int, int]) -> None:
    report = report_of(**off_by(name, index, 1e-3))
    assert report.first_failure is not None
    assert report.first_failure.name == name
    worst_text, other_text, *_ = Page(as_html(report)).pictures
    for picture, wrong in ((worst_text, [list(cell)]), (other_text, [])):
        for group in picture.findall(".//g"):
            found = cells(picture, group.get("data-axis", ""))
            expected = wrong if group.get("data-axis") == axis else []
            assert np.argwhere(found > LEVELS.index(FAIL) - 1).tolist() == expected


@pytest.mark.parametrize(
    ("name", "is_beyond_bound"), [("encoder.embed_tokens", True), ("encoder.layers.1.tokens.fc2", False)]
)
def test_one_wrong_element_in_a_right_row_is_drawn(name: str, is_beyond_bound: bool) -> None:
    row = (0, 13)
    failure = report_of(**{name: TENSORS[name] + 1}).failure
    assert failure is not None
    variance, bound = (array[row] for array in failure.estimate.allowed())
    alone = ELEMENT_FAIL * np.sqrt(variance + variance.mean())
    column = int(np.argmax(alone - bound if is_beyond_bound else bound - alone))
    off = failure.estimate.value.copy()
    off[*row, column] += 1.001 * (bound if is_beyond_bound else alone)[column]
    assert (abs(off - failure.estimate.value)[*row] > bound).any() == is_beyond_bound
    report = report_of(**{name: off})
    assert report.first_failure is not None
    assert report.first_failure.name == name
    assert report.first_failure.rho < FAIL
    found = cells(Page(as_html(report)).pictures[0], "position")
    assert np.argwhere(found >= FIRST_FAILING).tolist() == [[0, 13]]
    assert found[0, 13] == FIRST_FAILING


def test_nan_is_drawn_in_its_cell() -> None:
    nan = {"decoder.layers.0.fc1": TENSORS["decoder.layers.0.fc1"].copy()}
    nan["decoder.layers.0.fc1"][0, 2, 1] = np.nan
    report = report_of(**nan)
    assert report.first_failure is not None
    assert (report.first_failure.note, report.first_failure.at) == ("NaN or infinite", (0, 2, 1))
    found = cells(Page(as_html(report)).pictures[0], "target position")
    assert np.argwhere(found >= FIRST_FAILING).tolist() == [[0, 2]]
    assert found[0, 2] == len(LEVELS)


def test_a_tensor_of_another_shape_has_no_picture() -> None:
    html = as_html(report_of(lm_head=np.zeros((2, 6, 7))))
    assert "No heatmap: shape (2, 6, 7) where (2, 6, 256) is expected." in html
    assert Page(html).pictures == []


@pytest.mark.parametrize("layer", [0, 1])
def test_block_edges_are_drawn_between_blocks(layer: int) -> None:
    name = f"encoder.layers.{layer}.self_attn.local.1.scores"
    picture = Page(as_html(report_of(**off_by(name, (0, 1, 2, 3), 1e-3)))).pictures[0]
    assert edges(picture, "edge") == EDGES[layer]
    assert edges(picture, "edge other") == EDGES[1 - layer]


def test_edges_of_narrow_blocks_would_hide_the_cells() -> None:
    """129 blocks of 8 positions have 5 pixels each; 88 blocks have 10."""
    for num_blocks, has_edges in ((129, False), (88, True)):
        rows = RowErrors(np.ones((1, 8 * num_blocks)), np.zeros((1, 8 * num_blocks), dtype=bool))
        strip = Strip("position", rows, tuple(range(8, 8 * num_blocks, 8)), tuple(range(4, 8 * num_blocks, 8)))
        drawn = draw(Heatmap("place", 0, False, [strip]), 512, 64).strips[0]
        assert (bool(drawn.edges), bool(drawn.other_edges)) == (has_edges, has_edges)


def test_the_banner_counts_the_findings_and_names_the_first_bug() -> None:
    wrong = {"encoder.layers.1.tokens.activation": TENSORS["encoder.layers.1.tokens.fc1"]}
    later = off_by("decoder.layers.0.fc1", (0, 2, 3), 1e-2)
    bug = "<code>encoder.layers.1.tokens.activation</code>: the activation is missing</p>"
    assert f"✗ 1 finding. First wrong: {bug}" in as_html(report_of(**wrong))
    html = as_html(report_of(**wrong, **later))
    assert f"✗ 2 findings. First wrong: {bug}" in html
    assert "do not follow from the first" not in html


def test_an_exact_operation_has_no_expected_error() -> None:
    exact, rounded = (
        as_html(report_of(**off_by(f"decoder.layers.0.{name}", (0, 1, 2), 1e-2))) for name in ("input", "fc1")
    )
    assert "; the operation is exact</dd>" in exact
    assert "; expected rounding error " in rounded


def test_decoders_have_no_blocks() -> None:
    picture = Page(as_html(report_of(**off_by("decoder.layers.0.encoder_attn.k_proj", (0, 1, 2), 1e-3)))).pictures[0]
    assert edges(picture, "edge") == edges(picture, "edge other") == []


def test_padding_is_blank() -> None:
    pictures = Page(as_html(REPORTS["failing"])).pictures
    for picture, mask in zip(pictures[:2], INPUTS["attention_mask"], strict=True):
        found = cells(picture, "position")[:4, :29]
        np.testing.assert_array_equal(found >= 0, np.broadcast_to(mask, found.shape))
        assert (cells(picture, "global token")[:4, :4] >= 0).all()


def test_tooltips_describe_their_rows() -> None:
    titles = [title.text for title in Page(as_html(REPORTS["failing"])).pictures[0].iter("title")]
    (wrong,) = (title for title in titles if title and "wrong" in title)
    assert re.fullmatch(r"head 3, position 17, block 2: ρ [\d.e+]+, 1 wrong", wrong)
    assert len(titles) == 4 * (4 + 29)


def test_the_worst_rows_of_a_large_batch_are_drawn() -> None:
    inputs = {"input_ids": np.tile(INPUTS["input_ids"][:1], (6, 1)), "decoder_input_ids": np.zeros((6, 2), int)}
    tensors = {name: array.copy() for name, array in from_backend(MODEL)(inputs).items()}
    tensors["encoder.layers.1.tokens.fc1"][4, 8, 0] += 1e-2
    tensors["decoder.layers.1.fc1"][3, 1, 0] += 1e-2
    page = as_html(verify(MODEL, tensors, inputs, "float32"))
    assert "The worst 4 of 6 batch rows." in page
    first, *_, last = Page(page).pictures
    assert len(Page(page).pictures) == 5
    assert cells(first, "position")[0, 8] >= FIRST_FAILING
    assert cells(last, "target position")[0, 1] >= FIRST_FAILING


def test_bins_keep_their_largest_value() -> None:
    rng = np.random.default_rng(0)
    rho = 10 ** rng.uniform(-1, 7, (3, 700))
    rho[:, rng.integers(700, size=300)] = np.nan
    rho[:, 600:640] = np.nan
    is_wrong = rho > FAIL
    is_wrong[1, 13] = True
    for width in (2, 16):
        parts = [slice(start, start + width) for start in range(0, 700, width)]
        with np.errstate(invalid="ignore"):
            expected = [[max((x for x in line[p] if x == x), default=np.nan) for p in parts] for line in rho]
        np.testing.assert_array_equal(binned(rho, width, np.nan), expected)
    edge_list = tuple(range(8, 700, 8))
    drawing = draw(Heatmap("place", 0, True, [Strip("position", RowErrors(rho, is_wrong), edge_list)]), 512, 64)
    (strip,) = drawing.strips
    assert (strip.num_cells, strip.bin_width) == (350, 2)
    assert [float(x) * 2 for x in re.findall(r"M([\d.]+) 0v3", strip.edges)] == list(edge_list)
    # Tooltips cover each line except for blank cells, and name their largest rho.
    for head in range(3):
        pieces = [(x, x + width) for x, line, width, _ in strip.tooltips if line == head]
        assert all(stop <= start for (_, stop), (start, _) in pairwise(pieces))
        blank = set(range(350)) - {x for start, stop in pieces for x in range(start, stop)}
        assert all(np.isnan(rho[head, 2 * x : 2 * x + 2]).all() for x in blank)
    for x, head, width, text in strip.tooltips:
        largest = np.nanmax(rho[head, 2 * x : 2 * (x + width)])
        at = int(re.findall(r" at (\d+)", text)[0])
        assert rho[head, at] == largest
        assert f"up to {largest:.3g}" in text
        assert ("wrong" in text) == is_wrong[head, 2 * x : 2 * (x + width)].any()


def test_the_worst_rows_are_in_a_table() -> None:
    rng = np.random.default_rng(0)
    strips = [
        Strip(
            axis, RowErrors(rho := 10 ** rng.uniform(-1, 2, (3, 20)), (rho > FAIL) & (rng.random((3, 20)) < 0.1)), edges
        )
        for axis, edges in (("global token", ()), ("position", (8, 16)))
    ]
    strips[0].rows.rho[1, :] = np.nan
    everything = [
        (bool(is_wrong[head, row]), rho[head, row].item(), axis, head, row)
        for axis, (rho, is_wrong), *_ in strips
        for head, row in np.ndindex(3, 20)
        if not np.isnan(rho[head, row])
    ]
    expected = sorted(everything, reverse=True)[:12]
    assert 0 < sum(is_wrong for is_wrong, *_ in expected) < 12
    found = worst_spots(Heatmap("place", 0, True, strips), 12)
    assert [(spot.is_wrong, spot.rho, spot.axis, spot.head, spot.row) for spot in found] == expected
    for spot in found:
        assert spot.block == ((spot.row >= 8) + (spot.row >= 16) if spot.axis == "position" else None)
    row = '<tr><th scope="row">position 17</th><td>3</td><td>2</td><td>[\\d.e+]+</td><td>wrong</td></tr>'
    assert len(re.findall(row, as_html(REPORTS["failing"]))) == 2  # scores, and the probabilities of right scores


def test_a_candidate_may_show_few_tensors() -> None:
    shown = {name: TENSORS[name] for name in TENSORS if not name.endswith(("scores", "probs", "0.fc1"))}
    wrong = off_by("encoder.layers.1.self_attn.local.2.context", (0, 3, 5, 1), 1.0)
    html = as_html(verify(MODEL, shown | wrong, INPUTS, "float32"))
    assert "fail (wide)" in html
    assert "from tensors that the candidate does not show" in html
    assert cells(Page(html).pictures[0], "position")[3, 17] >= FIRST_FAILING


def test_names_are_escaped() -> None:
    report = report_of(**{"<b>&amp;</b>": np.zeros(1)}, **WRONG)
    report.table.append(report.table[-1]._replace(name="odd.<i>tensor</i>", note="<u>", verdict="fail"))
    html = as_html(report, "<s>subject</s>")
    Page(html)
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in html
    assert "&lt;i&gt;tensor&lt;/i&gt;" in html
    assert "<title>Failed: &lt;s&gt;subject&lt;/s&gt;</title>" in html
    assert not re.search("<[bius]>", html)


@pytest.mark.parametrize("wrong", [True, False])
def test_the_page_of_a_published_shape_stays_small(wrong: bool) -> None:
    """926 tensors; in the worst case, each row of each tensor is wrong to another degree."""
    report = base_like(wrong)
    html = as_html(report)
    assert len(report.table) == 926
    assert len(html.encode()) < 2e6
    assert len(Page(html).pictures) == (21 if wrong else 1)
    assert ("more have no heatmap here" in html) == wrong


def base_like(wrong: bool) -> Report:
    """Build a report like that of the base model over 4096 tokens, without a run."""
    rng = np.random.default_rng(0)
    blocks = [[(s, s + 512) for s in range(0, 4096, 512)], [(s, s + 512) for s in range(0, 4608, 512)]] * 6
    table, rows = [], {}
    for point, letters in TRACE_POINTS.items():
        for layer in range(12 if "{i}" in point else 1):
            for block in range(len(blocks[layer]) if "{n}" in point else 1):
                name = point.replace("{i}", str(layer)).replace("{n}", str(block))
                length = {"T": 4096, "G": 128, "L": 128, "S": 512}[letters[-2]]
                if letters[-2] == "S" and layer % 2 and block in (0, 8):
                    length = 256
                shape = (1, 12, length) if "H" in letters else (1, length)
                rho = 10 ** rng.uniform(-1, 8 if wrong else 0.4, shape)
                rows[name] = RowErrors(rho.astype(np.float32), rho > FAIL)
                verdict = "fail" if wrong else "pass"
                table.append(Check(name, "linear", verdict, rho.max(), 1e-3, 1e-7, 1e-6, (0, 9, 99), 1e-5, True))
    for staggered in blocks[1::2]:
        staggered[:] = [(max(0, start - 256), min(4096, stop - 256)) for start, stop in staggered]
    valid = ValidRows(np.ones((1, 4096), bool), np.ones((1, 128), bool), blocks)
    first = [check for check in table if wrong and check.name == "encoder.layers.1.self_attn.local.2.scores"]
    findings, coverage = [Finding([check], []) for check in first], Coverage(len(table), [], {})
    return Report(table, findings, None, "float32", coverage, PegasusXConfig.preset("base"), valid, rows)


# --- JUnit -----------------------------------------------------------------------------------------------------------


def test_junit_has_one_case_per_tensor() -> None:
    name = "encoder.layers.1.tokens.activation"
    report = report_of(**{name: TENSORS["encoder.layers.1.tokens.fc1"]}, **off_by("lm_head", (0, 2, 3), 1e-2))
    root = ET.fromstring(as_junit(report, "mine"))
    (suite,) = root.findall("testsuite")
    assert (root.tag, suite.get("name")) == ("testsuites", "verify mine")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [check.name for check in report.table]
    failures = {case.get("name"): case.find("failure") for case in cases if case.find("failure") is not None}
    assert list(failures) == [name, "encoder.layers.1.tokens.fc2", "lm_head"]
    counts = {"tests": str(len(cases)), "failures": "3", "errors": "0", "skipped": "0"}
    assert root.attrib == counts
    assert counts.items() <= suite.attrib.items()
    assert "time" not in suite.attrib | cases[0].attrib
    parts = {case.get("name"): case.get("classname") for case in cases}
    assert (parts[name], parts["lm_head"]) == ("encoder.layers.1", "head")
    assert (parts["decoder.embeddings"], parts["decoder.layers.0.fc1"]) == ("decoder", "decoder.layers.0")
    texts = [failure.text or "" for failure in failures.values() if failure is not None]
    assert f"the first wrong tensor of a finding: {name} (activation)" in texts[0]
    assert "likely bug: the activation is missing" in texts[0]
    assert "likely bug" not in texts[2]
    assert re.match(r"linear at \[0, 2, 3\]: rho \S+, error \S+, sigma \S+, bound \S+\n", texts[2])


def test_junit_has_warnings_in_system_out() -> None:
    report = report_of()
    report.table[:3] = [
        report.table[0]._replace(verdict="warn", rho=4.2),
        report.table[1]._replace(verdict="blind"),
        report.table[2]._replace(is_direct=False),
    ]
    (suite,) = ET.fromstring(as_junit(report))
    assert suite.get("failures") == "0"
    notes = [case.findtext("system-out") for case in suite.findall("testcase")]
    assert [str(text).partition(": rho")[0] for text in notes[:3]] == [
        "warn",
        "blind",
        "wide: the candidate does not show all inputs of the operation",
    ]
    assert set(notes[3:]) == {None}


def test_junit_holds_odd_characters() -> None:
    report = report_of(**{"<&'\"\0\x1b\ud800 ä": np.zeros(1)})
    report.table[0] = report.table[0]._replace(name="a<b\x07", note="\x01&", verdict="fail")
    (suite,) = ET.fromstring(as_junit(report, "]]>\x0c"))
    assert suite.get("name") == "verify ]]>\ufffd"
    assert (suite.findtext("system-out") or "").endswith("Unknown names: <&'\"\\x00\\x1b\\ud800 ä")
    case = suite.find("testcase")
    assert case is not None
    assert case.get("name") == "a<b\ufffd"
    assert "\ufffd&" in (case.findtext("failure") or "")
