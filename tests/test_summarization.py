"""`pipeline("summarization")`: texts in, summaries out, as transformers 4 shaped them."""

import json
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegasusx_ref import (
    BackendError,
    CheckpointError,
    InputError,
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXError,
    PegasusXForConditionalGeneration,
    SummarizationPipeline,
    pipeline,
)

LIMIT: dict[str, Any] = {"max_new_tokens": 8}


class Table(list[str]):
    """Iterates over the names of its columns, as a table of pandas does."""

    columns = ("text", "summary")


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
    for sequence in (tuple(texts), np.array(texts), dict.fromkeys(texts).keys()):
        assert summarizer(sequence, batch_size=batch_size, **LIMIT) == expected
    stream = summarizer(iter(texts), batch_size=batch_size, **LIMIT)
    assert not hasattr(stream, "__len__")
    assert list(stream) == [[summary] for summary in expected]


def test_texts_of_similar_length_are_a_batch(
    summarizer: SummarizationPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["reads files. " * n for n in (9, 1, 8, 2, 7, 3)]
    alone, lengths = summarizer(texts, **LIMIT), []
    generate = summarizer.generate

    def recorded(batch: Any, *arguments: Any, **settings: Any) -> Any:
        lengths.append(batch["attention_mask"].sum(axis=1).tolist())
        return generate(batch, *arguments, **settings)

    monkeypatch.setattr(summarizer, "generate", recorded)
    assert summarizer(texts, batch_size=2, **LIMIT) == alone
    in_turn = [length for batch in lengths for length in batch]
    assert in_turn == sorted(in_turn, reverse=True)
    lengths.clear()
    list(summarizer(iter(texts), batch_size=2, **LIMIT))
    assert [len(batch) for batch in lengths] == [2, 2, 2]
    assert all(longer > shorter for longer, shorter in lengths)  # in the iterator's order


def test_iterators_are_read_as_their_summaries_are_consumed(
    summarizer: SummarizationPipeline, texts: list[str], summaries: list[str]
) -> None:
    """The results have the form of transformers 4: a list for each text."""
    num_read = 0

    def endless() -> Iterator[str]:
        nonlocal num_read
        for num_read in count(1):
            yield texts[num_read % 3]

    stream = summarizer(endless(), batch_size=2, **LIMIT)
    assert num_read == 0
    assert [next(stream) for _ in range(3)] == [[{"summary_text": summaries[i]}] for i in (1, 2, 0)]
    assert num_read == 4
    mixed = summarizer(iter([texts[0], ""]), **LIMIT)
    assert next(mixed) == [{"summary_text": summaries[0]}]
    with pytest.raises(InputError, match="text 1 is empty"):
        next(mixed)
    with pytest.raises(InputError, match="batch_size=0"):
        summarizer(endless(), batch_size=0)


@pytest.mark.parametrize("task", [{"max_length": 6}, {"num_beams": 3, "max_new_tokens": 5, "prefix": "the files: "}])
def test_the_checkpoints_settings_for_the_task(
    task: dict[str, Any], wordy_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    """They replace those of generation_config.json; arguments replace them; the prefix stands in front of a text."""
    shutil.copytree(wordy_folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["task_specific_params"] = {"summarization": task, "translation": {"max_length": 3}}
    config["prefix"] = "another: "
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    summarizer = pipeline(model=tmp_path / "model")
    prefix = task.get("prefix", "another: ")
    settings = {name: value for name, value in task.items() if name != "prefix"}
    ids = summarizer.tokenizer([prefix + texts[0]], return_tensors="np")
    variants: list[dict[str, Any]] = [{}, {"max_new_tokens": 4, "num_beams": 2}]
    for changes in variants:
        used = {name: value for name, value in (settings | changes).items() if not (changes and name == "max_length")}
        expected = summarizer.model.generate(**ids, **used)
        expected_text = summarizer.tokenizer.decode(expected[0], skip_special_tokens=True)
        assert summarizer(texts[0], **changes) == [{"summary_text": expected_text}]
    with pytest.raises(InputError, match="text 0 is empty"):
        summarizer("\u200b")


def test_settings_of_the_task_that_are_not_supported_are_named(wordy_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(wordy_folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for task, message in (({"style": "old"}, "ignoring .*: {'style': 'old'}"), ({"prefix": 7}, "{'prefix': 7}")):
        config["task_specific_params"] = {"summarization": task}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        with pytest.warns(match=message):
            pipeline(model=tmp_path / "model")


def test_without_any_length_a_summary_has_up_to_256_tokens(summarizer: SummarizationPipeline) -> None:
    """As in transformers 4; `generate` has 20."""
    assert summarizer.model.generation_config.lengths() == (0, 21)
    assert summarizer.generation_config.lengths() == (0, 257)


@pytest.mark.slow
def test_a_tokenizer_of_transformers(
    summarizer: SummarizationPipeline, wordy_folder: Path, texts: list[str], prose: str
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PegasusTokenizer.from_pretrained(wordy_folder)
    both = pipeline(model=summarizer.model, tokenizer=theirs)
    assert both.tokenizer is theirs
    assert both([t.strip() for t in texts], batch_size=2, **LIMIT) == summarizer(
        [t.strip() for t in texts], batch_size=2, **LIMIT
    )
    long = prose[20000:24000].strip()
    with pytest.warns(UserWarning, match="text 0 is longer than the model's 512 tokens") as warned:
        summarizer(long, **LIMIT), both(long, **LIMIT)
    assert len({str(warning.message) for warning in warned}) == 1
    with pytest.raises(InputError, match="text 1 is empty"):
        both(["A text.", "\u200b"], **LIMIT)
    with pytest.raises(TypeError, match="7 is no tokenizer"):
        pipeline(model=summarizer.model, tokenizer=7)


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
    assert repr(pipeline(model=wordy_folder, load_in_4bit=True).model).endswith("weights in fp4>")


def test_a_model_comes_with_its_tokenizer(
    summarizer: SummarizationPipeline, wordy_folder: Path, texts: list[str], summaries: list[str]
) -> None:
    for tokenizer in (summarizer.tokenizer, wordy_folder):
        again = pipeline("summarization", model=summarizer.model, tokenizer=tokenizer)
        assert again.model is summarizer.model
        assert again(texts[2], **LIMIT) == [{"summary_text": summaries[2]}]
    with pytest.raises(InputError, match="a model was given without its tokenizer: pass tokenizer="):
        pipeline("summarization", model=summarizer.model)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"backend": "golden"}, "backend='golden', but"),
        ({"dtype": "float64"}, "load it again"),
    ]
    for arguments, message in refused:
        with pytest.raises(PegasusXError, match=message):
            pipeline("summarization", model=summarizer.model, tokenizer=summarizer.tokenizer, **arguments)
    pipeline(model=summarizer.model, tokenizer=summarizer.tokenizer, backend="numpy", device=-1, torch_dtype="float32")


def test_a_tokenizer_from_another_folder(wordy_folder: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    shutil.copytree(wordy_folder, tmp_path / "model")
    (tmp_path / "model" / "spiece.model").unlink()
    with pytest.raises(CheckpointError, match=r"model: no tokenizer: copy spiece\.model"):
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
        ({"trainable": True}, TypeError, r"pipeline\(\) got an unexpected keyword argument 'trainable'"),
        (
            {"dtype": "float32", "torch_dtype": "float64"},
            InputError,
            "dtype='float32' and torch_dtype='float64' are two",
        ),
        (
            {"device": "cpu", "device_map": "auto"},
            InputError,
            "device='cpu' and device_map='auto' .* pass device alone",
        ),
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
        ("\u200b\u200b \ufeff", {}, InputError, "text 0 is empty"),
        (["A text.", "\u200b"], {"batch_size": 2}, InputError, "text 1 is empty"),
        (7, {}, InputError, "expected a text or several, got 7"),
        (b"bytes", {}, InputError, "expected a text or several, got b'bytes'"),
        (["A text.", None], {}, TypeError, "text 1 is a NoneType: pass a str"),
        ({"text": "A text."}, {}, TypeError, r"got a dict: pass its texts, as in data\['text'\]"),
        ([{"text": "A text."}], {}, TypeError, "text 0 is a dict with 'text': pass the texts themselves"),
        (Table(), {}, TypeError, "expected a text or several, got a Table"),
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
