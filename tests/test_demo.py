"""The embedded checkpoint has the figures of its model card, on held-out pairs."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import evaluate
import numpy as np
import pytest
from corpus import MAX_SHARED, Pair, load_pairs, most_shared

from pegasusx_ref import DEMO_CHECKPOINT, PegasusTokenizer, PegasusXForConditionalGeneration, pipeline

pytestmark = pytest.mark.slow

HELD_OUT = Path(__file__).parent / "data" / "held_out.jsonl"
CARD = (DEMO_CHECKPOINT / "README.md").read_text(encoding="utf-8")
PORTABLE = 0.5  # points of ROUGE: float32 rounding of another machine may change a close choice


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return load_pairs(HELD_OUT)


def figures_on_the_card(rows: str) -> list[float]:
    """Read the three ROUGE means of a row of the card's table."""
    (row,) = re.findall(rf"^\| {re.escape(rows)} \|(.*)\|$", CARD, re.MULTILINE)
    return [float(cell.split()[0]) for cell in row.split("|")]


# --- the checkpoint --------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_small_bfloat16_and_has_the_sha256_of_the_card() -> None:
    from pegasusx_ref.checkpoint.safetensors_file import read_safetensors

    weights = DEMO_CHECKPOINT / "model.safetensors"
    assert sum(path.stat().st_size for path in DEMO_CHECKPOINT.iterdir() if path.is_file()) <= 10_000_000
    assert {str(tensor.dtype) for tensor in read_safetensors(weights)[0].values()} == {"bfloat16"}
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in CARD


def test_transformers_generates_the_same_tokens(transformers: ModuleType, pairs: list[Pair]) -> None:
    import torch

    tokenizer = PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)
    ours = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, dtype="float64")
    theirs = transformers.PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, dtype=torch.float64).eval()
    for pair in pairs[:12]:
        batch = tokenizer(pair.description, return_tensors="pt")
        expected = theirs.generate(**batch)
        assert ours.generate(**batch).tolist() == expected.tolist()


def test_transformers_tokenizer_gives_the_same_ids(transformers: ModuleType, pairs: list[Pair]) -> None:
    theirs = transformers.PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)
    ours = PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)
    for pair in pairs[:50]:
        text = " ".join(pair.description.split())
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_staggering_changes_its_summaries(pairs: list[Pair]) -> None:
    """The checkpoint depends on staggered blocks, so it is suited to study the architecture."""
    model = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT)
    aligned = PegasusXForConditionalGeneration(
        model.config.replace(stagger_local_blocks=False), model.state_dict(), model.ops, model.generation_config
    )
    tokenizer = PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)
    batch = tokenizer([pair.description for pair in pairs[:20]], return_tensors="np")
    assert (batch.attention_mask.sum(axis=1) > model.config.block_size).sum() > 15
    written = [tokenizer.batch_decode(m.generate(**batch), skip_special_tokens=True) for m in (model, aligned)]
    assert sum(a != b for a, b in zip(*written, strict=True)) >= 10


# --- its figures -----------------------------------------------------------------------------------------------------


def test_rouge_of_the_command_line_is_that_of_the_card(pairs: list[Pair], tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.txt" for i in range(len(pairs))]
    for file, pair in zip(files, pairs, strict=True):
        file.write_text(pair.description, encoding="utf-8")
    command = [sys.executable, "-m", "pegasusx_ref", "summarize", "--json", "--no-progress", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    assert done.stderr.startswith("Note: no model was given: using the embedded checkpoint")
    summaries = [json.loads(line)["summary_text"] for line in done.stdout.splitlines()]
    references = [pair.synopsis for pair in pairs]
    found = evaluate.rouge(references, summaries).mean(axis=0)
    assert np.abs(found - figures_on_the_card("the 200 of them in `tests/data/`")).max() <= PORTABLE
    lead = evaluate.rouge(references, [evaluate.lead(pair.description) for pair in pairs]).mean(axis=0)
    assert (found > lead + 5).all()


def test_the_baseline_has_the_figures_of_the_card(pairs: list[Pair]) -> None:
    references = [pair.synopsis for pair in pairs]
    lead = evaluate.rouge(references, [evaluate.lead(pair.description) for pair in pairs]).mean(axis=0)
    assert np.abs(lead - figures_on_the_card("first eight words, the 200")).max() < 0.006


def test_the_pipeline_without_a_model_warns_and_uses_the_checkpoint(pairs: list[Pair]) -> None:
    with pytest.warns(UserWarning, match="no model was given: using the embedded checkpoint"):
        summarizer = pipeline("summarization")
    found: Any = summarizer(pairs[0].description)
    assert found == pipeline(model=DEMO_CHECKPOINT)(pairs[0].description)


def test_the_shipped_pairs_share_little_with_the_training_side(pairs: list[Pair]) -> None:
    folder = os.environ.get("PEGASUSX_REF_DEMO_CORPUS")
    if not folder:
        pytest.skip("no corpus: set PEGASUSX_REF_DEMO_CORPUS to the output folder of tools/demo/corpus.py")
    facts = json.loads((Path(folder) / "corpus.json").read_text())
    if facts["translation_sha256"] not in CARD:
        pytest.skip("Debian's descriptions have changed since the checkpoint was trained")
    train = load_pairs(Path(folder) / "train.jsonl")
    assert facts["train_sha256"] in CARD
    assert load_pairs(Path(folder) / "test.jsonl")[: len(pairs)] == pairs
    assert max(most_shared(train, pairs)) <= MAX_SHARED
    assert not {pair.synopsis.lower() for pair in train} & {pair.synopsis.lower() for pair in pairs}
