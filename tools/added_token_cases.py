"""Write tests/data/added_tokens.json: what transformers 4 gives for spiece.model with added tokens, on drawn texts.

    pip install 'transformers<5' sentencepiece && python tools/added_token_cases.py

The texts leave out what transformers 4 does wrong: it cuts a token beside one with `single_word`, or one with spaces.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "pegasusx_ref" / "demo" / "spiece.model"
PROSE = "\n".join(
    json.loads(line)["description"] for line in (ROOT / "tests/data/held_out.jsonl").open(encoding="utf-8")
)
UNKNOWN, SIZE = 105, 6103  # ids of the model
SPACES = [" ", "  ", "\t", "\n", " \n ", "\u00a0", "\u3000", ",", ".", "x"]
ODD = ["é", "e\u0301", "ﬁ", "①", "\u200b", "😀", "日本", "\x07", "<", "s", "sin", "long"]


def token(content: str, **flags: bool) -> dict[str, Any]:
    off = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False}
    return {"content": content, **off, **flags}


def special(content: str, **flags: bool) -> dict[str, Any]:
    return token(content, normalized=False, special=True, **flags)


FLAGS = [
    special("<sep>"), special("<doc>"), token("zplain"), token("longer token"), token("zlst", lstrip=True),
    token("zrst", rstrip=True), special("zboth", lstrip=True, rstrip=True), token("zsingle", single_word=True),
    token("<se"), token("zplainer"), token("ﬁx"),
]  # fmt: skip
RESERVED = {"0": special("<pad>"), "1": special("</s>"), "105": special("<unk>")}
FOLDERS: dict[str, dict[str, Any]] = {
    "flags": {
        "tokenizer_config.json": {
            "added_tokens_decoder": RESERVED | {str(SIZE + i): entry for i, entry in enumerate(FLAGS)},
            "additional_special_tokens": ["<sep>", "<doc>", "zboth"],
        }
    },
    "older files": {
        "added_tokens.json": {"<doc>": SIZE + 1, "<sep>": SIZE, "zplain": SIZE + 2, "<|user|>": SIZE + 3},
        "special_tokens_map.json": {
            "additional_special_tokens": [special("<sep>"), "<doc>"],
            "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        },
        "tokenizer_config.json": {"offset": 103},
    },
    "names alone": {"tokenizer_config.json": {"additional_special_tokens": ["<sep>", "<mask_1>", "<doc>"]}},
    "gaps": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(SIZE): FLAGS[0], str(SIZE + 7): FLAGS[1], str(SIZE + 9): FLAGS[2]},
            "additional_special_tokens": ["<sep>", "<doc>"],
        }
    },
    "pieces": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {"120": token("▁in"), "400": token("▁game"), str(SIZE): FLAGS[0]},
            "additional_special_tokens": ["<sep>"],
        }
    },
}  # fmt: skip


def draw_text(rng: random.Random, tokens: list[str]) -> str:
    parts = []
    for _ in range(rng.choice([0, 1, 2, 4, 8, 14])):
        kind = rng.randrange(10)
        if kind < 3:
            start = rng.randrange(len(PROSE) - 30)
            parts.append(PROSE[start : start + rng.randint(1, 20)])
        elif kind < 7:
            one = rng.choice(tokens)
            around = (
                (rng.choice(["x", " ", ", ", "a "]), rng.choice(["x", " ", ". "])) if one == "zsingle" else ("", "")
            )
            parts.append(one.join(around))
        else:
            parts.append(rng.choice(SPACES if kind < 9 else ODD))
    return "".join(parts)


def cases(name: str, files: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(MODEL, folder)
        for file_name, entries in files.items():
            (Path(folder) / file_name).write_text(json.dumps(entries), encoding="utf-8")
        theirs = transformers.PegasusTokenizer.from_pretrained(folder)
    added = {text: i for text, i in sorted(theirs.get_added_vocab().items()) if i > UNKNOWN}
    texts = []
    for _ in range(150 if name == "flags" else 50):
        text = draw_text(rng, list(added))
        ids = theirs(text)["input_ids"]
        whole = None if UNKNOWN in ids else theirs.decode(ids[:-1])  # transformers 5 has other spaces at <unk>
        texts.append([text, ids, whole, theirs.decode(ids, skip_special_tokens=True).strip()])
    rows = []
    for _ in range(20):
        choices: list[Callable[[], int]] = [
            lambda: rng.randrange(UNKNOWN + 1, SIZE),
            lambda: rng.choice(list(added.values())),
            lambda: 1,
        ]
        ids = [rng.choice(choices)() for _ in range(rng.choice([1, 2, 5, 9]))]
        rows.append([ids, theirs.decode(ids, skip_special_tokens=True).strip()])
    special_ids = sorted(i for i in theirs.all_special_ids if i > UNKNOWN)
    found = {"files": files, "length": len(theirs), "added": added, "special": special_ids}
    return found | {"texts": texts, "rows": rows}


if __name__ == "__main__":
    rng = random.Random(17)
    content = {name: cases(name, files, rng) for name, files in FOLDERS.items()}
    path = ROOT / "tests" / "data" / "added_tokens.json"
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
