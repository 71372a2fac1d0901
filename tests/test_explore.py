"""`pegasusx-ref explore`: its data equal those of a recorded run, and its page works in Chromium."""

import base64
import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as chromium
import numpy as np
import pytest
from click.testing import CliRunner

from pegasusx_ref import DEMO_CHECKPOINT, InputError, PegasusXConfig, pipeline, record
from pegasusx_ref.cli import main
from pegasusx_ref.golden.global_local import block_bounds
from pegasusx_ref.model.encoder import is_staggered
from pegasusx_ref.study.explore import Exploration, as_page, explore_text
from pegasusx_ref.study.explore.attention_listeners import EncoderAttentionListener
from pegasusx_ref.study.explore.exploration import DecodeStep, TokenProbability
from pegasusx_ref.study.explore.mathml import as_mathml
from pegasusx_ref.study.explore.stages import STAGES, shortened, tensor_dimensions
from pegasusx_ref.study.explore.top_keys import KeyCounts, TopKeys, key_counts_that_fit, quantize, top_keys
from pegasusx_ref.study.spec_sections import golden_source, sections
from pegasusx_ref.summarization import SummarizationPipeline
from pegasusx_ref.tokenizer import PegasusTokenizer

NASTY = 'Close </script><b>bold</b> & "quotes" <!-- and ${more} {{ braces }} '


@pytest.fixture(scope="module")
def summarizer(wordy_folder: Path) -> SummarizationPipeline:
    return pipeline("summarization", wordy_folder)


@pytest.fixture(scope="module")
def text(prose: str) -> str:
    return prose[2000:2150]


@pytest.fixture(scope="module", params=[1, 3], ids=["greedy", "beams"])
def exploration(summarizer: SummarizationPipeline, text: str, request: pytest.FixtureRequest) -> Exploration:
    return explore_text(summarizer, text, max_new_tokens=9, num_beams=request.param)


@pytest.fixture(scope="module")
def trace(summarizer: SummarizationPipeline, exploration: Exploration) -> dict[str, Any]:
    """All tensors of the same run."""
    target = [0, *(step.chosen.token_id for step in exploration.steps)]
    with record() as trace:
        summarizer.model([exploration.token_ids], decoder_input_ids=[target[:-1]])
    return trace


# --- the data --------------------------------------------------------------------------------------------------------


def assert_strongest(found: TopKeys, layer: int, row: int, mean_X: np.ndarray, probs_HX: np.ndarray) -> None:
    """Check the order of the keys, their weights within the rounding of a byte, and the heads of largest weight."""
    count = min(found.keys.shape[2], len(mean_X))
    keys, weights = found.keys[layer, row, :count], (found.weights[layer, row, :count] / 255.0) ** 2
    expected = np.sort(mean_X)[::-1][:count]
    np.testing.assert_allclose(mean_X[keys], expected, rtol=0, atol=1e-6)
    assert (abs(weights - expected) <= (2 * np.sqrt(expected) + 1 / 510) / 510 + 1e-6).all()
    np.testing.assert_array_equal(found.heads[layer, row, :count], probs_HX[:, keys].argmax(axis=0))
    assert len(set(keys.tolist())) == count
    assert not found.weights[layer, row, count:].any()


def assert_share(found: np.ndarray, expected: np.ndarray) -> None:
    assert (abs((found / 255.0) ** 2 - expected) <= (2 * np.sqrt(expected) + 1 / 510) / 510 + 1e-6).all()


def test_keys_of_tokens_are_those_of_a_recorded_run(exploration: Exploration, trace: dict[str, Any]) -> None:
    config, encoder, num_tokens = exploration.config, exploration.encoder, len(exploration.token_ids)
    G = config.num_global_tokens
    for layer in range(config.encoder_layers):
        blocks = block_bounds(num_tokens, config.block_size, is_staggered(config, layer))
        assert encoder.blocks[layer] == blocks
        for n, (start, stop) in enumerate(blocks):
            probs = trace[f"encoder.layers.{layer}.self_attn.local.{n}.probs"][0]
            assert_share(encoder.globals_share[layer, start:stop], probs[:, :, :G].sum(axis=2).mean(axis=0))
            for row in range(stop - start):
                local, on_globals = probs[:, row, G:], probs[:, row, :G]
                assert_strongest(encoder.in_block, layer, start + row, local.mean(axis=0), local)
                assert_strongest(encoder.on_globals, layer, start + row, on_globals.mean(axis=0), on_globals)


def test_keys_of_global_tokens_and_steps_are_those_of_a_recorded_run(
    exploration: Exploration, trace: dict[str, Any]
) -> None:
    config, encoder = exploration.config, exploration.encoder
    G = config.num_global_tokens
    for layer in range(config.encoder_layers):
        probs = trace[f"encoder.layers.{layer}.self_attn.global.probs"][0]
        assert_share(encoder.globals_own_share[layer], probs[:, :, :G].sum(axis=2).mean(axis=0))
        for row in range(G):
            assert_strongest(encoder.by_globals, layer, row, probs[:, row, G:].mean(axis=0), probs[:, row, G:])
    for layer in range(config.decoder_layers):
        probs = trace[f"decoder.layers.{layer}.encoder_attn.probs"][0]
        for row in range(len(exploration.steps)):
            assert_strongest(exploration.cross, layer, row, probs[:, row].mean(axis=0), probs[:, row])


def test_alternatives_are_the_softmax_of_the_logits(exploration: Exploration, trace: dict[str, Any]) -> None:
    logits = trace["lm_head"][0].astype(np.float64)
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    for row, step in zip(probs, exploration.steps, strict=True):
        best = np.argsort(-row)[:8]
        assert [token.token_id for token in step.most_likely] == best.tolist()
        np.testing.assert_allclose([token.probability for token in step.most_likely], row[best], rtol=1e-4)
        assert step.chosen.probability == pytest.approx(row[step.chosen.token_id], rel=1e-4)
        assert step.rank == (row > row[step.chosen.token_id]).sum()


def test_the_summary_is_what_generate_writes(summarizer: SummarizationPipeline, text: str) -> None:
    for num_beams in (1, 3):
        found = explore_text(summarizer, text, max_new_tokens=9, num_beams=num_beams)
        ids = summarizer.model.generate(**summarizer.encode(text), max_new_tokens=9, num_beams=num_beams)
        assert [step.chosen.token_id for step in found.steps] == ids[0, 1:].tolist()


def test_top_keys_of_equal_weight_are_in_order() -> None:
    probs = np.random.default_rng(0).integers(1, 5, (1, 1, 200)) / 500
    keys, weights, _ = top_keys(probs, 200)
    assert keys[0].tolist() == np.lexsort((np.arange(200), -probs[0, 0])).tolist()
    np.testing.assert_array_equal(weights[0], probs[0, 0, keys[0]])


def test_quantization_error_is_within_its_bound() -> None:
    weights = np.concatenate([np.random.default_rng(0).random(1000) ** 4, [0, 1, 1 / 640]])
    back = (quantize(weights) / 255.0) ** 2
    assert (abs(back - weights) <= (2 * np.sqrt(weights) + 1 / 510) / 510 + 1e-12).all()


def test_shapes_are_those_of_a_run(exploration: Exploration, trace: dict[str, Any]) -> None:
    config, num_tokens, num_steps = exploration.config, len(exploration.token_ids), len(exploration.steps)
    start, stop = exploration.encoder.blocks[1][0]
    varying = {"S": stop - start, "X": config.num_global_tokens + stop - start}
    for points in STAGES.values():
        for point in (point for tensors in points.values() for point in tensors):
            sizes = [
                varying[letter] if size is None else size
                for letter, size in tensor_dimensions(point, config, num_tokens, num_steps)
            ]
            assert tuple(sizes) == trace[point.format(i=1, n=0)].shape, point


def test_shortened_code_keeps_its_line_numbers() -> None:
    source = golden_source("pegasusx_ref.golden.global_local.local_attention")
    lines = shortened(source)
    file = (Path(__file__).parents[1] / source.path).read_text(encoding="utf-8").splitlines()
    assert all(file[line.number - 1] == line.text for line in lines)
    code = "\n".join(line.text for line in lines)
    assert '"""Let every token attend' in code
    assert code.count('"""') == 1
    assert "Args:" not in code
    assert "return np.concatenate(contexts, axis=2)" in code


def test_every_equation_of_the_specification_becomes_mathml() -> None:
    found = [as_mathml(equation) for section in sections().values() for equation in section.equations]
    assert len(found) > 35
    for part in (part for parts in found for part in parts):
        assert part.startswith("<math ")
        assert "\\" not in html.unescape(re.sub("<[^>]+>", "", part)), part


# --- the size --------------------------------------------------------------------------------------------------------


def fill(keys: TopKeys, num_keys: int, rng: np.random.Generator) -> None:
    keys.keys[...] = rng.integers(num_keys, size=keys.keys.shape)
    keys.weights[...] = rng.integers(1, 256, size=keys.weights.shape)
    keys.heads[...] = rng.integers(16, size=keys.heads.shape)


def large_exploration(num_tokens: int, num_steps: int) -> Exploration:
    """Random data in the shapes of the large model, without a run."""
    rng, config = np.random.default_rng(0), PegasusXConfig.preset("large", vocab_size=6103)
    counts = key_counts_that_fit(config, num_tokens, num_steps)
    encoder = EncoderAttentionListener(config, num_tokens, counts)
    fill(encoder.in_block, 256, rng)
    fill(encoder.on_globals, config.num_global_tokens, rng)
    fill(encoder.by_globals, num_tokens, rng)
    encoder.globals_share[...] = rng.integers(256, size=encoder.globals_share.shape)
    cross = TopKeys(config.decoder_layers, num_steps, num_tokens, counts.text)
    fill(cross, num_tokens, rng)
    ids = rng.integers(106, config.vocab_size, num_tokens).tolist()
    step = DecodeStep(
        TokenProbability(300, 0.123456), 1, [TokenProbability(i, 0.123456 / (i - 299)) for i in range(300, 308)]
    )
    return Exploration(config, ids, 0, counts, encoder, [step] * num_steps, cross)


@pytest.fixture(scope="module")
def large_page() -> str:
    return as_page(large_exploration(16384, 256), PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT), "16,384 tokens")


def test_the_page_of_16384_tokens_of_the_large_model_stays_below_10_mb(large_page: str) -> None:
    assert 6e6 < len(large_page.encode()) < 10e6
    assert "of every token in its block instead of 12, so that the page stays below 10 MB" in large_page


def test_fewer_keys_are_kept_only_if_the_page_would_be_too_large() -> None:
    large, base = (PegasusXConfig.preset(name) for name in ("large", "base"))
    assert key_counts_that_fit(base, 4096, 128) == KeyCounts(12, 3, 48)
    kept = [key_counts_that_fit(large, num_tokens, 256).block for num_tokens in (2048, 8192, 16384)]
    assert kept[0] == 12 > kept[1] > kept[2] >= 4
    with pytest.raises(InputError, match="2000000 tokens in 16 layers do not fit on a page of 10 MB: explore fewer"):
        key_counts_that_fit(large, 2_000_000, 256)


# --- the page --------------------------------------------------------------------------------------------------------


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_page_contains_the_data(exploration: Exploration, summarizer: SummarizationPipeline) -> None:
    page = as_page(exploration, summarizer.tokenizer)
    data = data_of(page)
    assert (
        "".join(data["tokens"]).replace("</s>", "").split()
        == summarizer.tokenizer.decode(exploration.token_ids, skip_special_tokens=True).split()
    )
    keys = data["inBlock"]["keys"]
    back = np.frombuffer(base64.b64decode(keys["data"]), keys["type"])
    np.testing.assert_array_equal(back, exploration.encoder.in_block.keys.ravel())
    assert [data["layouts"][layout] for layout in data["layers"]] == [
        [start for start, _ in blocks] for blocks in exploration.encoder.blocks
    ]
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)


def test_texts_are_escaped(summarizer: SummarizationPipeline) -> None:
    page = as_page(explore_text(summarizer, NASTY, max_new_tokens=2), summarizer.tokenizer, NASTY)
    assert len(re.findall("</script>", page)) == 2
    assert "<b>bold" not in page
    assert "&lt;/script&gt;&lt;b&gt;bold" in page


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(main, ["explore", *arguments], **options)


def test_the_command_writes_a_page(tmp_path: Path, wordy_folder: Path, text: str) -> None:
    out = tmp_path / "page.html"
    out.write_text("what was there")
    limits = ("--tokens", "20", "--max-new-tokens", "4", "--num-beams", "1")
    result = run("--model", str(wordy_folder), "--out", str(out), *limits, input=text)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(rf"{re.escape(str(out))}: 0\.\d MB\n", result.stdout)
    assert "Note: standard input is longer than --tokens 20: the last " in result.stderr
    assert re.search(r"standard input: read 20 tokens in .*, wrote 4 in", result.stderr)
    data = data_of(out.read_text(encoding="utf-8"))
    assert (len(data["tokens"]), len(data["written"])) == (20, 4)


def test_an_unwritable_output_file_is_reported_before_the_run(tmp_path: Path) -> None:
    result = run("--out", str(tmp_path / "missing" / "page.html"), input="A text.")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--out" in result.stderr
    assert "read" not in result.stderr
    result = run(str(tmp_path / "no.txt"), "--out", str(tmp_path / "page.html"))
    assert result.exit_code == 2
    assert not (tmp_path / "page.html").exists()


def test_missing_latex2mathml_is_reported_before_the_run(tmp_path: Path) -> None:
    code = "import sys; sys.modules['latex2mathml.converter'] = None; from pegasusx_ref.cli import main; main()"
    command = [sys.executable, "-c", code, "explore", "--out", str(tmp_path / "page.html")]
    result = subprocess.run(command, input="A text.", capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "Error: equations need latex2mathml: pip install 'pegasusx-ref[study]'\n"


# --- the page in Chromium --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.opened() as browser:
        yield browser


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chromium.screenshot_folder(tmp_path_factory.mktemp("screenshots"))


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """The page of the command for 3,000 words."""
    folder = tmp_path_factory.mktemp("explored")
    (folder / "text.txt").write_text(" ".join(prose.split()[:3000]), encoding="utf-8")
    arguments = ("--out", str(folder / "page.html"), "--tokens", "16384", "--num-beams", "2", "--max-new-tokens", "12")
    assert run(str(folder / "text.txt"), *arguments).exit_code == 0
    return folder / "page.html"


class Page:
    """A page as a user sees it."""

    def __init__(self, browser: Any, file: Path) -> None:
        self.browser = browser
        chromium.prefer(browser, "light")
        chromium.open_page(browser, file, ready="[aria-selected=true]")

    def text(self, selector: str) -> str:
        return str(self.script("return document.querySelector(arguments[0]).innerText", selector))

    def script(self, code: str, *arguments: Any) -> Any:
        return self.browser.execute_script(code, *arguments)

    def click(self, identifier: str) -> None:
        """Scroll an element into view and click it."""
        element = self.browser.find_element("id", identifier)
        self.script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def press(self, identifier: str, *keys: str) -> None:
        self.browser.find_element("id", identifier).send_keys(*keys)

    def rows(self) -> list[list[str]]:
        """The table of layers."""
        code = "return [...document.querySelectorAll('#layers tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
        found: list[list[str]] = self.script(code)
        return found

    def neighbours(self) -> set[int]:
        """The tokens that are listed as keys in the selected layer."""
        code = "return [...document.querySelectorAll('#keys [data-go=token]')].map(b => Number(b.dataset.at))"
        return set(self.script(code))

    def assert_quiet(self) -> None:
        """Check that the console has no errors and that only the page itself was requested."""
        assert [entry for entry in self.browser.get_log("browser") if entry["level"] != "DEBUG"] == []
        requested = [url for url in chromium.requests_of(self.browser) if not url.startswith("data:")]
        assert [url for url in requested if not url.startswith("file://")] == []


@pytest.fixture
def page(browser: Any, long_page: Path) -> Iterator[Page]:
    page = Page(browser, long_page)
    yield page
    page.assert_quiet()


def test_a_token_at_an_edge_has_other_neighbours_on_even_and_staggered_layers(page: Page, pictures: Path) -> None:
    page.click("token-96")
    assert [row[1] for row in page.rows()] == ["[96, 128)", "[80, 112)", "[96, 128)"]
    page.click("token-95")
    blocks = [row[:2] for row in page.rows()]
    assert page.text("h1") == "text.txt"  # without its folder
    assert blocks == [["0 even", "[64, 96)"], ["1 staggered", "[80, 112)"], ["2 even", "[64, 96)"]]
    even = page.neighbours()
    page.browser.find_element("css selector", "#layers tr[data-layer='1'] button").click()
    staggered = page.neighbours()
    page.browser.save_screenshot(str(pictures / "token-at-an-edge.png"))
    assert even <= set(range(64, 96))
    assert staggered <= set(range(80, 112))
    assert any(token < 80 for token in even)
    assert any(token >= 96 for token in staggered)
    highlighted = page.script(
        "return [...document.querySelectorAll('#source .highlighted')].map(t => Number(t.dataset.at))"
    )
    assert set(highlighted) == staggered
    shares = page.script(
        "return [...document.querySelectorAll('.highlighted')].map(t => Number(t.style.getPropertyValue('--share')))"
    )
    assert max(shares) == 1  # one scale for tokens and global tokens
    assert shares.count(1) == 1
    in_block = page.script("return [...document.querySelectorAll('.in-block')].map(p => Number(p.dataset.start))")
    assert in_block == [80, 96]
    edges = page.script("return [...document.querySelectorAll('.piece.edge')].map(p => Number(p.dataset.start))")
    assert edges[:3] == [16, 48, 80]
    assert page.script("return [...document.querySelectorAll('[data-dimension=X]')].map(d => d.innerText)")[0] == "48"


def test_the_page_shows_the_weights_of_its_data(page: Page, long_page: Path) -> None:
    data = data_of(long_page.read_text(encoding="utf-8"))
    page.click("token-2000")
    sample = data["inBlock"]
    keys, weights = (
        np.frombuffer(base64.b64decode(sample[name]["data"]), sample[name]["type"]).reshape(
            sample["layers"], sample["rows"], sample["count"]
        )[0, 2000]
        for name in ("keys", "weights")
    )
    shown = page.script(
        "return [...document.querySelectorAll('#keys li')].filter(l => l.dataset.key.startsWith('token'))"
        ".map(l => [Number(l.querySelector('[data-go]').dataset.at), parseFloat(l.querySelector('.number').innerText)])"
    )
    start = 2000 // 32 * 32
    assert [at for at, _ in shown] == [start + int(key) for key in keys[weights > 0]]
    expected = 100 * (weights[weights > 0] / 255.0) ** 2
    assert (abs(np.array([weight for _, weight in shown]) - expected) <= np.where(expected < 10, 0.051, 0.51)).all()


def test_a_global_token_shows_its_keys_in_the_whole_text(page: Page, pictures: Path) -> None:
    page.click("global-3")
    assert page.text("#what") == "Global token 3"
    assert len(page.neighbours()) == 48
    assert max(page.neighbours()) - min(page.neighbours()) > 100
    assert page.text("#stages details:not([hidden])[open] summary").endswith("Global attention")
    page.browser.save_screenshot(str(pictures / "global-token.png"))


def test_the_summary_is_stepped_through(page: Page, pictures: Path, long_page: Path) -> None:
    data = data_of(long_page.read_text(encoding="utf-8"))
    page.click("step-0")
    for n in range(3):
        assert page.text("#what").startswith(f"Step {n + 1}: “{data['written'][n].strip() or '␣'}”")
        chosen = page.text("#candidates li.chosen .name")
        assert chosen == (data["written"][n].strip() or "␣")
        assert len(page.script("return document.querySelectorAll('#candidates li')")) >= 8
        unwritten = page.script("return document.querySelectorAll('#summary .unwritten').length")
        assert unwritten == len(data["written"]) - 1 - n
        assert page.script("return document.querySelectorAll('#source .highlighted').length") > 10
        page.press("summary", " ")
    page.browser.save_screenshot(str(pictures / "step.png"))
    page.click("play")
    assert page.script("return document.getElementById('play').ariaPressed") == "true"
    page.click("play")
    assert page.script("return document.getElementById('play').ariaPressed") == "false"


def test_every_action_has_a_key(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.press("source", Keys.HOME)
    assert page.text("#what").startswith("Token 0:")
    page.press("source", Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert page.text("#what").startswith("Token 1:")
    assert page.text("#layer-name") == "Encoder layer 1, staggered"
    page.press("source", Keys.SHIFT + Keys.ARROW_RIGHT)
    assert page.text("#what").startswith("Token 15:")
    page.press("source", Keys.SHIFT + Keys.ARROW_RIGHT)
    assert page.text("#what").startswith("Token 16:")
    page.press("source", Keys.SHIFT + Keys.ARROW_LEFT)
    assert page.text("#what").startswith("Token 15:")
    page.press("source", Keys.SHIFT + Keys.ARROW_LEFT)
    assert page.text("#what").startswith("Token 0:")
    page.press("source", Keys.SHIFT + Keys.ARROW_RIGHT)
    page.press("source", Keys.SHIFT + Keys.ARROW_RIGHT)
    active = "return document.getElementById('source').getAttribute('aria-activedescendant')"
    assert page.script(active) == "token-16"
    page.press("layer", Keys.ARROW_RIGHT)
    assert page.text("#layer-name") == "Encoder layer 2, even"
    page.press("globals", Keys.END)
    assert page.text("#what") == "Global token 15"
    assert page.script("return document.getElementById('help').open") is False
    page.press("globals", "?")
    assert page.script("return document.getElementById('help').open") is True
    page.press("help", Keys.ESCAPE)
    assert page.script("return document.getElementById('help').open") is False
    stops = page.script("return document.querySelectorAll('main > .text [tabindex]').length")
    assert stops == 3  # and not one a token


def test_light_dark_and_narrow(page: Page, pictures: Path) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    page.click("token-95")
    assert page.script(background) == "rgb(255, 255, 255)"
    chromium.prefer(page.browser, "dark")
    assert page.script(background) == "rgb(20, 24, 28)"
    page.browser.save_screenshot(str(pictures / "dark.png"))
    try:
        for width in (1000, 420):
            chromium.resize(page.browser, width, 900)
            page.browser.save_screenshot(str(pictures / f"width-{width}.png"))
            assert page.script("return document.documentElement.scrollWidth") <= width
    finally:
        chromium.resize(page.browser, 1366, 768)


def test_a_page_of_16384_tokens_is_interactive(browser: Any, large_page: str, tmp_path: Path, pictures: Path) -> None:
    file = tmp_path / "large.html"
    file.write_text(large_page, encoding="utf-8")
    page = Page(browser, file)
    (loaded,) = page.script("return performance.getEntriesByType('navigation').map(n => n.loadEventEnd)")
    page.click("token-9000")
    assert len(page.rows()) == 16
    milliseconds = page.script(
        "return Array.from({length: 15}, (_, n) => { const start = performance.now();"
        "document.getElementById(`token-${(1009 * n) % 16384}`).click(); document.body.offsetHeight;"
        "return performance.now() - start; }).sort((a, b) => a - b)"
    )
    print(f"16,384 tokens, {len(large_page) / 1e6:.1f} MB: loaded in {loaded:.0f} ms, a click {milliseconds[7]:.0f} ms")
    page.browser.save_screenshot(str(pictures / "16384-tokens.png"))
    assert milliseconds[7] < 500  # 25 on an idle machine
    page.assert_quiet()


def test_markup_in_a_text_is_text(browser: Any, summarizer: SummarizationPipeline, tmp_path: Path) -> None:
    file = tmp_path / "nasty.html"
    file.write_text(
        as_page(explore_text(summarizer, NASTY, max_new_tokens=2), summarizer.tokenizer, NASTY), encoding="utf-8"
    )
    page = Page(browser, file)
    assert page.script("return document.querySelectorAll('b:not(.dimension b)').length") == 0
    assert "</script><b>bold" in page.text("h1")
    source = page.script("return document.getElementById('source').textContent")
    assert source == "".join(data_of(file.read_text(encoding="utf-8"))["tokens"])
    page.assert_quiet()
