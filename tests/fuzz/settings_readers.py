"""Settings of generation, drawn and damaged, which `generate` uses; settings of config.json that the pipeline uses."""

import json
import math
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz.mutations import Damage
from fuzz.oracle import Wrong
from fuzz.readers import JSON, TEXT, Reader, make_checkpoint, read_checkpoint

from pegasusx_ref import (
    PegasusTokenizer,
    PegasusXForConditionalGeneration,
    SummarizationPipeline,
    pipeline,
)

SIZE = 130  # of the vocabulary
SOURCE = [[110, 111, 112, 1]]
IDS = (0, 1, 5, 106, 110, 129, 130, -1, 2**31, 2**63, 2**64, 1.0, True, None, "5", [5], float("nan"))
LISTS: Any = (
    [],
    [5],
    [110, 111],
    list(range(2, 130)),
    list(range(130)),
    [[5]],
    [[]],
    [5, 5],
    5,
    "x",
    {"a": 1},
    [None],
    [130],
    list(range(100)) * 1000,
    {},
)
NUMBERS = (
    0,
    1,
    2,
    3,
    -1,
    0.0,
    0.5,
    1.0,
    1.5,
    -0.5,
    1e-30,
    1e30,
    1e308,
    1e-320,
    math.inf,
    -math.inf,
    math.nan,
    2**20,
    2**31,
    2**63,
    10**30,
    "2",
    "",
    None,
    True,
    [1],
    {"a": 1},
)
WORDS: Any = (
    [[110]],
    [[110, 111]],
    [[1]],
    [[5], [6, 7, 8]],
    [[]],
    [5],
    [[i] for i in range(130)],
    [[110] * 1000],
    [[i, j] for i in range(130) for j in range(50)],
    [["a"]],
    [[130]],
    [[-1]],
    [[True]],
    [[1.0]],
    "x",
    [None],
    {"a": [1]},
    [[[5]]],
)
DECAYS = (
    [1, 1.5],
    [0, 1e30],
    [0, 1e-30],
    [2**20, 2],
    [0, 0],
    [-1, 1.1],
    [1],
    [1, 2, 3],
    [0, math.inf],
    [math.nan, 1],
    ["1", 1],
    "x",
    [1.5, 1.5],
    [True, 1.5],
    [0, 1e308],
    [[1], 1],
    {"0": 1, "1": 2},
    [0, -2],
)
STRINGS: Any = (
    "a",
    "the",
    ["a", "b"],
    "",
    [""],
    [],
    "x" * 5000,
    ["a"] * 2000,
    "\ud800",
    "\x1b",
    [1],
    1,
    {"a": 1},
    "▁",
    " ",
    ["e\u0301"],
    "</s>",
    [["a"]],
    "a\0b",
    "The small model of a library.",
)
DRAWN: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": WORDS,
    "suppress_tokens": LISTS,
    "begin_suppress_tokens": LISTS,
    "forced_bos_token_id": IDS,
    "forced_eos_token_id": (*IDS, *LISTS),
    "exponential_decay_length_penalty": DECAYS,
    "stop_strings": STRINGS,
    "max_time": NUMBERS,
    "renormalize_logits": (True, False, None, 1, "x"),
    **dict.fromkeys(
        (
            "temperature",
            "top_k",
            "top_p",
            "repetition_penalty",
            "no_repeat_ngram_size",
            "length_penalty",
            "encoder_no_repeat_ngram_size",
            "num_beams",
            "num_return_sequences",
            "min_length",
            "max_length",
            "min_new_tokens",
        ),
        NUMBERS,
    ),
    "do_sample": (True, False, None, 0, "x"),
    "early_stopping": (True, False, "never", "x", None, 1),
    **dict.fromkeys(("decoder_start_token_id", "bos_token_id", "pad_token_id"), IDS),
    "eos_token_id": (*IDS, *LISTS),
    **dict.fromkeys(
        ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"),
        (True, False, None, 1),
    ),
    **dict.fromkeys(
        (
            "guidance_scale",
            "force_words_ids",
            "sequence_bias",
            "min_p",
            "typical_p",
            "constraints",
            "watermarking_config",
            "num_beam_groups",
            "diversity_penalty",
            "temprature",
            "max_lenght",
            "x" * 40,
            "\x1b[31m",
        ),
        (*NUMBERS, *LISTS[:9]),
    ),
}


def make_settings(folder: Path) -> None:
    make_checkpoint(folder)
    settings = {
        "num_beams": 2,
        "length_penalty": 0.8,
        "eos_token_id": [1, 3],
        "bad_words_ids": [[110], [111, 112]],
        "suppress_tokens": [113],
        "begin_suppress_tokens": [114],
        "exponential_decay_length_penalty": [1, 1.5],
        "stop_strings": ["lib"],
        "forced_bos_token_id": 115,
        "renormalize_logits": True,
        "max_time": 100.0,
        "max_new_tokens": 4,
        "guidance_scale": 1.0,
        "transformers_version": "5.23.0",
        "forced_eos_token_id": 1,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))


def damage_drawn(rng: Random, path: Path) -> None:
    """Draw settings: many right ones, some with a wrong value."""
    entries = json.loads(path.read_text("utf-8"))
    if rng.random() < 0.7:
        entries = {"max_new_tokens": 4}
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        name = rng.choice(list(DRAWN))
        entries[name] = rng.choice(DRAWN[name])
    path.write_text(json.dumps(entries), "utf-8", errors="surrogatepass")


def use_settings(folder: Path, found: PegasusXForConditionalGeneration) -> None:
    """Generate by the settings of the file, and check the tokens by them."""
    tokenizer = tokenizer_of(folder)
    path = folder / "generation_config.json"
    file = json.loads(path.read_text("utf-8-sig")) if path.exists() else {}
    found.save_pretrained(folder / "copy")
    again = json.loads((folder / "copy" / "generation_config.json").read_text("utf-8"))
    for name, value in file.items():
        if name in DRAWN and value is not None and name in again and json.dumps(again[name]) != json.dumps(value):
            raise Wrong(f"{name} is {again[name]!r} after saving, was {value!r}")
    ids = found.generate(SOURCE, tokenizer=tokenizer, seed=0, return_dict_in_generate=False, max_new_tokens=4)
    again_ids = found.generate(SOURCE, tokenizer=tokenizer, seed=0, return_dict_in_generate=False, max_new_tokens=4)
    if not np.array_equal(ids, again_ids) and not file.get("max_time"):
        raise Wrong("two calls with one seed differ")
    if ids.min() < 0 or ids.max() >= SIZE or ids.shape[1] > 5:
        raise Wrong(f"the ids {ids}")
    greedy = found.generate(
        SOURCE,
        tokenizer=tokenizer,
        num_beams=1,
        do_sample=False,
        num_return_sequences=1,
        return_dict_in_generate=False,
        max_new_tokens=4,
    )
    check_tokens(greedy[0, 1:].tolist(), file)


def check_tokens(tokens: list[int], file: dict[str, Any]) -> None:
    """Check that greedy search chose no forbidden token while others were left."""
    end = file.get("eos_token_id")
    forced = as_list(file.get("forced_eos_token_id")) + as_list(file.get("forced_bos_token_id")) + as_list(end)
    suppressed, first, words = (
        as_list(file.get(name)) for name in ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
    )
    if len({*map(str, suppressed), *map(str, first), *map(str, words)}) > SIZE / 4 or file.get("no_repeat_ngram_size"):
        return
    pads = [*as_list(file.get("pad_token_id", 0)), 0]
    for i, token in enumerate(tokens):
        if token in pads and i and tokens[i - 1] in as_list(end):
            return
        if token in suppressed and token not in forced and token not in pads:
            raise Wrong(f"the suppressed token {token} in {tokens}")
        for word in words:
            if tokens[: i + 1][-len(word) :] == word and token not in forced and token not in pads:
                raise Wrong(f"the bad word {word} in {tokens}")
    if (start := file.get("forced_bos_token_id")) is not None and tokens[0] != start:
        raise Wrong(f"the first token of {tokens} is not {start}")


def as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


@lru_cache(8)
def _tokenizer(content: bytes, folder: Path) -> PegasusTokenizer:
    return PegasusTokenizer(folder / "spiece.model")


def tokenizer_of(folder: Path) -> PegasusTokenizer:
    return _tokenizer((folder / "spiece.model").read_bytes(), folder)


# --- the pipeline ----------------------------------------------------------------------------------------------------

TASK = {
    "max_length": 5,
    "min_length": 2,
    "length_penalty": 0.5,
    "num_beams": 2,
    "prefix": "a ",
    "no_repeat_ngram_size": 2,
}


def make_pipeline(folder: Path) -> None:
    make_checkpoint(folder)
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3}))
    path = folder / "config.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(entries | {"prefix": "of ", "task_specific_params": {"summarization": TASK, "x": {}}}))


def damage_task(rng: Random, path: Path) -> None:
    entries = json.loads(path.read_text("utf-8"))
    task = entries["task_specific_params"]["summarization"]
    texts: Any = (
        "",
        " ",
        "x" * 5000,
        "\u200b",
        "\ud800",
        "\x1b[31m\n",
        "▁",
        "a",
        "</s>",
        1,
        None,
        True,
        [],
        ["a"],
        {"a": 1},
        "the " * 20_000,
    )
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(5)
        if kind == 0:
            entries["prefix"] = rng.choice(texts)
        elif kind == 1:
            task["prefix"] = rng.choice(texts)
        elif kind == 2:
            name = rng.choice(list(DRAWN))
            task[name] = rng.choice(DRAWN[name])
        elif kind == 3:
            entries["task_specific_params"] = rng.choice(
                (
                    None,
                    [],
                    {},
                    "x",
                    1,
                    {"summarization": None},
                    {"summarization": []},
                    {"summarization": "x"},
                    {"": task},
                )
            )
        else:
            name = rng.choice(
                (
                    "",
                    "extra",
                    "self",
                    "cls",
                    "x",
                    "\x1b[31m",
                    "_given",
                    "max_new_tokens",
                    "x" * 5000,
                    "__class__",
                    "given",
                )
            )
            task[name] = rng.choice((1, "x", None, [], {"a": 1}))
    path.write_text(json.dumps(entries), "utf-8", errors="surrogatepass")


def read_pipeline(folder: Path) -> SummarizationPipeline:
    return pipeline(model=folder)


def use_pipeline(folder: Path, found: SummarizationPipeline) -> None:
    entries = json.loads((folder / "config.json").read_text("utf-8-sig"))
    tasks = entries.get("task_specific_params")
    task = tasks.get("summarization") if isinstance(tasks, dict) else None
    task = {n: v for n, v in task.items() if v is not None} if isinstance(task, dict) else {}
    prefix = task.get("prefix", entries.get("prefix"))
    prefix = prefix if isinstance(prefix, str) else ""
    if found.prefix != prefix:
        raise Wrong(f"the prefix is {found.prefix!r}, in the file {prefix!r}")
    for name, value in task.items():
        own = getattr(found.generation_config, name, None) if name in DRAWN else None
        if own is not None and json.dumps(own) != json.dumps(value):
            raise Wrong(f"{name} is {own!r}, in the file {value!r}")
    ids = found.encode(TEXT, truncation=False)["input_ids"][0].tolist()
    if ids != tokenizer_of(folder)(prefix + TEXT)["input_ids"]:
        raise Wrong(f"the ids {ids[:20]} with the prefix {prefix[:20]!r}")
    with suppress(ArithmeticError):
        found(TEXT, max_new_tokens=2)
        found([TEXT, "a"], max_new_tokens=2, batch_size=2)


DRAWN_SETTINGS: dict[str, Damage] = JSON | {"drawn": damage_drawn}
READERS: dict[str, Reader] = {
    "settings": Reader(make_settings, read_checkpoint, use_settings, {"generation_config.json": DRAWN_SETTINGS}, 2.0),
    "pipeline": Reader(
        make_pipeline,
        read_pipeline,
        use_pipeline,
        {"config.json": JSON | {"task": damage_task}, "generation_config.json": DRAWN_SETTINGS},
    ),
}
_ = partial
