"""Fixtures for the whole suite: real texts, a SentencePiece model, checkpoints, transformers."""

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

from pegasusx_ref import PegasusTokenizer, PegasusXConfig, PegasusXForConditionalGeneration

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

# Real English prose, about 77,000 characters: the descriptions of 200 Debian packages.
DESCRIPTIONS = (Path(__file__).parent / "data" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
PROSE = "\n".join(json.loads(line)["description"] for line in DESCRIPTIONS)
# Tags and the rules of tables, so that the small vocabulary has their characters, "=" in pieces of several lengths.
MARKUP = [f"<{word}> {'=' * length} </{word}>" for length, word in enumerate(PROSE.split()[:80], start=1)]


@pytest.fixture(scope="session")
def prose() -> str:
    return PROSE


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small spiece.model of the Pegasus layout."""
    from sentencepiece import SentencePieceTrainer

    folder = tmp_path_factory.mktemp("tokenizer")
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in [*PROSE.splitlines(), *MARKUP] if line.strip()),
        model_writer=model,
        vocab_size=397,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> PegasusTokenizer:
    return PegasusTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PegasusTokenizer) -> Path:
    """A tiny checkpoint with random weights and a tokenizer that fits it."""
    folder = tmp_path_factory.mktemp("model")
    config = PegasusXConfig.preset("tiny", vocab_size=tokenizer.vocab_size)
    PegasusXForConditionalGeneration.from_random(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wordy_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PegasusTokenizer) -> Path:
    """A checkpoint whose random weights are large enough to write a different summary of every document."""
    folder = tmp_path_factory.mktemp("wordy")
    config = PegasusXConfig.preset("tiny", vocab_size=tokenizer.vocab_size, init_std=0.5)
    PegasusXForConditionalGeneration.from_random(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """Import transformers, the independent reference, without its messages; skip where it or torch is not installed."""
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[test]' -c tests/constraints.txt")
    module: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def bnb(transformers: ModuleType) -> Iterator[ModuleType]:
    """Import bitsandbytes without its messages; its functions in Python run uncompiled."""
    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e '.[test]'")
    module = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[test]'")
    torch.compiler.set_stance("force_eager")
    yield module
    torch.compiler.set_stance("default")
