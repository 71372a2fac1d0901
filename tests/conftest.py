"""Fixtures for the whole suite: a SentencePiece model, checkpoints, the watch on dimension suffixes."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType
from typing import Any

import hypothesis
import pytest
import suffixes

from pegasusx_ref import PegasusTokenizer, PegasusXConfig, PegasusXForConditionalGeneration

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

# Real English prose that every CPython carries: the texts behind its help().
PROSE = "\n".join(str(topics[name]) for name in sorted(topics))


@pytest.fixture(scope="session", autouse=True)
def _watch_suffixes() -> Iterator[None]:
    """Check the dimension letters of every local of the package whenever one of its functions returns."""
    with suffixes.watched() as mistakes:
        yield
    assert not mistakes, "\n".join(sorted(mistakes))


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
        sentence_iterator=iter(line for line in PROSE.splitlines()[:4000] if line.strip()),
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
    """A checkpoint whose random weights say something else about every document."""
    folder = tmp_path_factory.mktemp("wordy")
    config = PegasusXConfig.preset("tiny", vocab_size=tokenizer.vocab_size, init_std=0.5)
    PegasusXForConditionalGeneration.from_random(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """transformers, the outside oracle, quiet; tests that need it skip where it or torch is not installed."""
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[test]' -c tests/constraints.txt")
    module: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module  # type: ignore[no-any-return]
