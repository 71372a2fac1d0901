"""`pipeline("summarization")`: texts in, summaries out, as transformers 4 shaped them."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pegasusx_ref import (
    BackendError,
    CheckpointError,
    InputError,
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    SummarizationPipeline,
    pipeline,
)

LIMIT: dict[str, Any] = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def texts(prose: str) -> list[str]:
    return [prose[:800], prose[2000:2600], prose[9000:9300]]


@pytest.fixture(scope="module")
def summarizer(wordy_folder: Path) -> SummarizationPipeline:
    return pipeline("summarization", model=wordy_folder)


@pytest.fixture(scope="module")
def summaries(summarizer: SummarizationPipeline, texts: list[str]) -> list[str]:
    """Summarize with the model and the tokenizer, without the pipeline."""
    model, tokenizer = summarizer.model, summarizer.tokenizer
    found = [
        tokenizer.decode(model.generate(**tokenizer(t, return_tensors="np"), **LIMIT)[0], skip_special_tokens=True)
        for t in texts
    ]
    assert len(set(found)) == len(texts)
    return found


def test_one_text_returns_a_list_of_one_summary(
    summarizer: SummarizationPipeline, texts: list[str], summaries: list[str]
) -> None:
    assert summarizer(texts[0], **LIMIT) == [{"summary_text": summaries[0]}]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_summaries_do_not_depend_on_the_batch_size(
    summarizer: SummarizationPipeline, texts: list[str], summaries: list[str], batch_size: int
) -> None:
    expected = [{"summary_text": summary} for summary in summaries]
    assert summarizer(texts, batch_size=batch_size, **LIMIT) == expected
    assert summarizer(iter(texts), batch_size=batch_size, **LIMIT) == expected


def test_no_texts_give_no_summaries(summarizer: SummarizationPipeline) -> None:
    assert summarizer([]) == []


def test_several_summaries_of_a_text(summarizer: SummarizationPipeline, texts: list[str]) -> None:
    settings = {"num_beams": 3, "num_return_sequences": 2, **LIMIT}
    one: Any = summarizer(texts[0], **settings)
    several: Any = summarizer(texts[:2], **settings)
    assert [len(one), len(several), len(several[1])] == [2, 2, 2]
    assert several[0] == one
    assert one[0] != one[1]


def test_a_long_text_is_cut_with_a_warning_or_read_whole(
    summarizer: SummarizationPipeline, texts: list[str], prose: str
) -> None:
    long = prose[20000:24000]
    num_tokens = len(summarizer.tokenizer.encode(long))
    assert num_tokens > 600
    message = f"text 1 is longer than the model's 512 tokens: the last {num_tokens - 512} were dropped"
    with pytest.warns(UserWarning, match=re.escape(message)):
        found: Any = summarizer([texts[0], long], **LIMIT)
    ids = summarizer.tokenizer(long, return_tensors="np").input_ids
    cut = summarizer.tokenizer(long, max_length=512, return_tensors="np").input_ids
    for kept, whole in ((cut, False), (ids, True)):
        expected = summarizer.model.generate(kept, **LIMIT)[0]
        summary = found[1] if not whole else summarizer(long, truncation=False, **LIMIT)[0]
        assert summary == {"summary_text": summarizer.tokenizer.decode(expected, skip_special_tokens=True)}


def test_the_documentations_spellings_of_dtype_and_device(wordy_folder: Path) -> None:
    assert pipeline(task="summarization", model=str(wordy_folder), torch_dtype="float64", device=0).model.dtype == (
        "float64"
    )
    assert pipeline(model=wordy_folder, device_map="auto", dtype="float32", backend="numpy").model.device == "cpu"


def test_a_model_comes_with_its_tokenizer(
    summarizer: SummarizationPipeline, wordy_folder: Path, texts: list[str], summaries: list[str]
) -> None:
    for tokenizer in (summarizer.tokenizer, wordy_folder):
        again = pipeline("summarization", model=summarizer.model, tokenizer=tokenizer)
        assert again.model is summarizer.model
        assert again(texts[2], **LIMIT) == [{"summary_text": summaries[2]}]
    with pytest.raises(InputError, match="a model was given without its tokenizer: pass tokenizer="):
        pipeline("summarization", model=summarizer.model)


def test_a_tokenizer_from_another_folder(wordy_folder: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    shutil.copytree(wordy_folder, tmp_path / "model")
    (tmp_path / "model" / "spiece.model").unlink()
    with pytest.raises(CheckpointError, match=re.escape("spiece.model: no such file")):
        pipeline(model=tmp_path / "model")
    assert pipeline(model=tmp_path / "model", tokenizer=tokenizer_folder).tokenizer.vocab_size == 500


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer: PegasusTokenizer) -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    with pytest.raises(CheckpointError, match="has 500 ids, but the model 256: use the model's own tokenizer"):
        SummarizationPipeline(model, tokenizer)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "translation"}, InputError, "task='translation' is not supported: pass 'summarization'"),
        ({"model": "/nowhere/at/all"}, CheckpointError, "/nowhere/at/all"),
        ({"backend": "abacus"}, BackendError, "backend 'abacus' is not installed"),
        ({"dtype": "float12"}, BackendError, "does not compute in 'float12'"),
        ({"device": "cuda:0"}, BackendError, "not on 'cuda:0'"),
    ],
    ids=str,
)
def test_unsupported_arguments_of_pipeline_are_errors(
    wordy_folder: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pipeline(**({"model": wordy_folder} | arguments))


@pytest.mark.parametrize(
    ("texts", "settings", "error", "message"),
    [
        ("", {}, InputError, "text 0 is empty"),
        (["A text.", " \n"], {}, InputError, "text 1 is empty"),
        (7, {}, InputError, "expected a text or several, got 7"),
        (b"bytes", {}, InputError, "expected a text or several, got b'bytes'"),
        (["A text.", None], {}, InputError, "text 1 is a NoneType: pass a str"),
        ("A text.", {"batch_size": 0}, InputError, "batch_size=0 must be an integer of at least 1"),
        ("A text.", {"max_tokens": 3}, TypeError, "max_tokens"),
        ("A text.", {"num_beams": 0}, ValueError, "num_beams=0 must be an integer from 1 to 1,024"),
    ],
    ids=str,
)
def test_unsupported_calls_are_errors(
    summarizer: SummarizationPipeline, texts: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        summarizer(texts, **settings)


def test_repr_names_task_and_model(summarizer: SummarizationPipeline) -> None:
    assert re.fullmatch(r"<SummarizationPipeline <PegasusXForConditionalGeneration .*>>", repr(summarizer))
