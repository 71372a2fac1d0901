"""Tokenizers with tokenizer.json, and with added tokens: damage to every part, and the ids that the files say."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import tokenizers
from fuzz.mutations import Damage
from fuzz.oracle import Wrong
from fuzz.readers import JSON, Reader, read_tokenizer, train, use_tokenizer

from pegasusx_ref import PegasusTokenizer

TEXTS = (
    "The small model of a library.",
    "<a> the<b>small plain<c> of",
    "plain  <a><b>  x<d>y",
    "ﬁ ① e\u0301 가 <x>\n=",
    "▁a ▁▁ b",
    "</s> the <pad><unk> <mask_1> of",
    "  ",
    "<sep>a <sep> ab",
    "\u200b\ufeff\u00ad",
    "a" * 300,
)
NAMES = (
    "<a>",
    "<b>",
    "<c>",
    "plain",
    "the",
    "▁the",
    "</s>",
    "<pad>",
    "<unk>",
    "<unk_5>",
    "<mask_1>",
    "a",
    " ",
    "",
    "▁",
    "<sep>",
    "x" * 900,
    "x" * 5000,
    "\ud800",
    "\x1b[31m\n",
    "\u202e",
    "é",
    "e\u0301",
    "a b",
    " a ",
    "\0",
)
IDS = (
    0,
    1,
    2,
    50,
    105,
    106,
    127,
    128,
    129,
    130,
    131,
    140,
    -1,
    2**16,
    2**24,
    2**31,
    2**32,
    2**63,
    2**64,
    True,
    "3",
    1.0,
    None,
)
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
SCORES = (0, -1e9, 1e9, 1e308, -1e308, 1e39, 5, None, "x", float("nan"), float("inf"), True)
MAX_SURE = 2**16  # bytes of files whose ids are compared


def make_tokenizer_json(folder: Path) -> None:
    """Write what transformers 5 saves, and the objects of version 4 beside it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    folder.mkdir()
    train(folder, "nmt_nfkc")
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    path = folder / "spiece.model"
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    pieces: Any = SentencePieceProcessor(model_proto=path.read_bytes())
    reserved = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 103)), "<unk>"]
    vocabulary = [(token, 0.0) for token in reserved]
    vocabulary += [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(3, pieces.get_piece_size())]
    found: Any = Tokenizer(models.Unigram(vocabulary, 105, False))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    found.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    found.decoder = decoders.Metaspace(prepend_scheme="always")
    found.post_processor = processors.TemplateProcessing("$A </s>", "$A $B </s>", [("</s>", 1)])
    found.add_special_tokens([AddedToken(token, normalized=False) for token in reserved])
    found.add_tokens(["plain", AddedToken("<a>", lstrip=True), AddedToken("<b>", special=True, normalized=False)])
    found.save(str(folder / "tokenizer.json"))
    path.unlink()
    by_id = found.get_added_tokens_decoder()
    entries = {
        "added_tokens_decoder": {
            str(i): {name: getattr(by_id[i], name) for name in ("content", *FLAGS)} for i in (0, 1, 105, 127, 128, 129)
        },
        "model_max_length": 600,
        "offset": 103,
        "tokenizer_class": "PegasusTokenizer",
        "extra_special_tokens": ["<b>"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))


def make_added_tokens(folder: Path) -> None:
    """Write spiece.model with the added tokens of transformers 4."""
    folder.mkdir()
    train(folder, "identity")
    size = PegasusTokenizer.from_pretrained(folder).vocab_size
    flags = dict.fromkeys(FLAGS, False)
    tokens = {
        "0": flags | {"content": "<pad>", "special": True},
        str(size): flags | {"content": "<a>"},
        str(size + 1): flags | {"content": "<b>", "special": True},
        str(size + 2): flags | {"content": "plain", "single_word": True, "rstrip": True},
        str(size + 3): flags | {"content": "<sep>a"},
        str(size + 4): flags | {"content": "<sep>", "normalized": True},
    }
    entries = {"added_tokens_decoder": tokens, "additional_special_tokens": ["<b>"], "truncation_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))


def make_older_tokenizer(folder: Path) -> None:
    """Write added tokens as transformers wrote them before it had `added_tokens_decoder`."""
    folder.mkdir()
    train(folder, "identity")
    size = PegasusTokenizer.from_pretrained(folder).vocab_size
    token = {"content": "<a>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    files: dict[str, dict[str, Any]] = {
        "added_tokens.json": {"<a>": size, "<b>": size + 1},
        "special_tokens_map.json": {"additional_special_tokens": [token, "<c>"], "pad_token": "<pad>"},
        "tokenizer_config.json": {"extra_special_tokens": {"d": "<d>"}, "model_max_length": 6, "offset": 103},
    }
    for name, entries in files.items():
        (folder / name).write_text(json.dumps(entries))


# --- damage ----------------------------------------------------------------------------------------------------------


def edited(change: Callable[[Random, dict[str, Any]], Any]) -> Damage:
    """Change the entries of a JSON file in place."""

    def damage(rng: Random, path: Path) -> None:
        entries = json.loads(path.read_text("utf-8"))
        change(rng, entries)
        path.write_text(json.dumps(entries), "utf-8")

    return damage


def damage_vocabulary(rng: Random, entries: dict[str, Any]) -> None:
    """Change pieces and scores."""
    model = entries["model"]
    vocabulary = model["vocab"]
    for _ in range(rng.choice((1, 1, 2, 5))):
        i, kind = rng.randrange(len(vocabulary)) if vocabulary else 0, rng.randrange(9)
        if kind == 0 and vocabulary:
            vocabulary[i] = [rng.choice(NAMES), rng.choice(SCORES)]
        elif kind == 1 and vocabulary:
            vocabulary[i] = [vocabulary[i][0], rng.choice(SCORES)]
        elif kind == 2:
            vocabulary.insert(i, [rng.choice(NAMES), -3.0])
        elif kind == 3:
            del vocabulary[i : i + rng.choice((1, 5, 500))]
        elif kind == 4 and vocabulary:
            vocabulary[i] = rng.choice(([], ["a"], ["a", -1, 2], "a", None, 1, {"a": 1}, [1, "a"]))
        elif kind == 5 and vocabulary:
            vocabulary.append(rng.choice(vocabulary))
        elif kind == 6:
            model["unk_id"] = rng.choice((0, 1, 106, 126, 127, -1, None, 2**32, 2**64, "105", 105.0))
        elif kind == 7:
            model["byte_fallback"] = rng.choice((True, None, 1, "x"))
            vocabulary += [[f"<0x{b:02X}>", -5.0] for b in range(rng.choice((0, 256, 200)))]
        else:
            model["type"] = rng.choice(("BPE", "WordPiece", "WordLevel", "unigram", None, 1))


def damage_added(rng: Random, entries: dict[str, Any]) -> None:
    """Change added tokens: their texts, ids, flags and order; of either file."""
    listed = "added_tokens" in entries
    tokens = entries["added_tokens"] if listed else [v | {"id": k} for k, v in entries["added_tokens_decoder"].items()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        i, kind = rng.randrange(len(tokens)) if tokens else 0, rng.randrange(8)
        if kind == 0 or not tokens:
            flags = {name: rng.choice((True, False)) for name in FLAGS}
            tokens.insert(i, {"id": rng.choice(IDS), "content": rng.choice(NAMES)} | flags)
        elif kind == 1:
            tokens[i]["content"] = rng.choice(NAMES)
        elif kind == 2:
            tokens[i]["id"] = rng.choice(IDS)
        elif kind == 3:
            tokens[i][rng.choice(FLAGS)] = rng.choice((True, False, True, False, None, 1, "x"))
        elif kind == 4:
            del tokens[i]
        elif kind == 5:
            tokens.append(dict(rng.choice(tokens)))
        elif kind == 6:
            rng.shuffle(tokens)
        else:
            tokens.append(rng.choice(tokens) | {"content": rng.choice(NAMES), "id": len(tokens)})
    if not listed:
        entries["added_tokens_decoder"] = {str(token.pop("id")): token for token in map(dict, tokens)}


def damage_map(rng: Random, entries: dict[str, Any]) -> None:
    """Change the character map of the normalizer."""
    step = entries["normalizer"]["normalizers"][0]
    table = bytearray(base64.b64decode(step["precompiled_charsmap"]))
    for _ in range(rng.choice((1, 1, 10, 1000))):
        table[rng.randrange(len(table))] = rng.randrange(256)
    cut = table[: rng.choice((None, None, None, 0, 3, 4, 1024, -1))]
    text = base64.b64encode(cut).decode()
    step["precompiled_charsmap"] = rng.choice(
        (text, text, text, text[:-1], text + "=", text[:50] + "\n" + text[50:], None, 1)
    )


REGEX = (
    " {2,}",
    "(a+)+$",
    "(a|a)*b",
    "(.*)*x",
    "[",
    "",
    "^",
    "$",
    "(?=a)",
    "\\",
    ".",
    "(?<x>a)\\k<x>",
    "a{100000}",
    "(a{1000}){1000}",
)
STEPS: tuple[dict[str, Any], ...] = (
    *({"type": "Replace", "pattern": {"Regex": regex}, "content": "x"} for regex in REGEX),
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 900},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 5000},
    *({"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 20} for _ in range(1)),
    {"type": "Prepend", "prepend": "x" * 900},
    {"type": "Prepend", "prepend": ""},
    {"type": "Lowercase"},
    {"type": "NFKD"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Nothing"},
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False},
    {"type": "Metaspace", "replacement": "▁▁", "prepend_scheme": "first", "split": True},
    {"type": "Metaspace", "replacement": "", "prepend_scheme": "always", "split": True},
    *({"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False} for r in REGEX[1:5]),
    {"type": "WhitespaceSplit"},
    {"type": "Digits", "individual_digits": True},
    {"type": "FixedLength", "length": 0},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Strip", "content": "a", "start": 1, "stop": 2**40},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
    {"type": "WordPiece", "prefix": "", "cleanup": True},
    {"type": "BPEDecoder", "suffix": ""},
)


def damage_steps(rng: Random, entries: dict[str, Any]) -> None:
    """Change the steps between a text and its pieces, and the parts that are not used here."""
    part = rng.choice(("normalizer", "pre_tokenizer", "decoder", "post_processor", "truncation", "padding", "many"))
    step = rng.choice(STEPS)
    if part == "truncation":
        sides = rng.choice(("Left", "Right", "left", "x", 1, None))
        entries[part] = {
            "direction": sides,
            "max_length": rng.choice((0, 1, 2**63)),
            "strategy": "LongestFirst",
            "stride": 0,
        }
    elif part == "padding":
        strategy = rng.choice(("BatchLongest", {"Fixed": 2**40}, {"Fixed": 10}, None))
        entries[part] = {
            "strategy": strategy,
            "direction": rng.choice(("Left", "Right", None)),
            "pad_id": 0,
            "pad_to_multiple_of": rng.choice((None, 0, 2**40)),
            "pad_type_id": 0,
            "pad_token": "<pad>",
        }
    elif part == "post_processor":
        entries[part] = rng.choice(
            (None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, {})
        )
    elif part == "many":
        steps = [rng.choice(STEPS)] * rng.choice((2, 10, 60, 2000))
        part, key = rng.choice(
            (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"), ("decoder", "decoders"))
        )
        entries[part] = {"type": "Sequence", key: steps}
    elif part == "normalizer" and rng.random() < 0.5:
        entries[part]["normalizers"].insert(rng.randrange(3), step)
    else:
        entries[part] = rng.choice((step, step, None, {"type": "Sequence", "decoders": [step, entries[part]]}))


def damage_special(rng: Random, entries: dict[str, Any]) -> None:
    """Change the special tokens, settings and ids of the files around the vocabulary."""
    token = rng.choice(NAMES)
    entry = {"content": token, "lstrip": rng.random() < 0.5, "normalized": rng.choice((True, False, None))}
    name = rng.choice(
        (
            "additional_special_tokens",
            "extra_special_tokens",
            "bos_token",
            "sep_token",
            "cls_token",
            "pad_token",
            "mask_token",
            "eos_token",
            "model_max_length",
            "padding_side",
            "truncation_side",
            "clean_up_tokenization_spaces",
            "offset",
            token,
        )
    )
    values: Any = (
        token,
        entry,
        [token],
        [entry, token],
        {"a": token},
        {"a": entry},
        rng.choice(IDS),
        "left",
        True,
        [[]],
        [None],
        1e30,
    )
    entries[name] = rng.choice(values)


def repeat(count: int, text: str) -> Damage:
    """Replace every "a" by a longer text, several times: the result would fill the memory."""

    def change(rng: Random, entries: dict[str, Any]) -> None:
        step = {"type": "Replace", "pattern": {"String": "a"}, "content": text}
        entries["normalizer"] = {"type": "Sequence", "normalizers": [step] * count}

    return edited(change)


def decoder_steps(rng: Random, entries: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 30}
    entries["decoder"] = {"type": "Sequence", "decoders": [step] * 6}


def slow_regex(rng: Random, entries: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "x"}
    entries["normalizer"] = {"type": "Sequence", "normalizers": [step]}


TOKENIZER_JSON: dict[str, Damage] = JSON | {
    "vocabulary": edited(damage_vocabulary),
    "added": edited(damage_added),
    "charsmap": edited(damage_map),
    "steps": edited(damage_steps),
    "text that grows 20-fold five times": repeat(5, "a" * 20),
    "text that grows 900-fold three times": repeat(3, "a" * 900),
    "text that grows when decoded": edited(decoder_steps),
    "regular expression that takes exponential time": edited(slow_regex),
}
SETTINGS: dict[str, Damage] = JSON | {"special": edited(damage_special)}
ADDED: dict[str, Damage] = SETTINGS | {"added": edited(damage_added)}


# --- what the files say ----------------------------------------------------------------------------------------------


def use_tokenizer_json(folder: Path, found: PegasusTokenizer) -> None:
    """Compare with the tokenizers library, to which the tokens of the other files were added."""
    config = _entries(folder / "tokenizer_config.json")
    decoder = config.get("added_tokens_decoder") or {}
    if (folder / "tokenizer.json").stat().st_size < MAX_SURE:
        try:
            theirs: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except BaseException as error:
            raise Wrong(f"read, although the tokenizers library refuses it: {error}") from error
        theirs.no_truncation()
        theirs.no_padding()
        tokens = [tokenizers.AddedToken(**token) for _, token in sorted((int(i), t) for i, t in decoder.items())]
        if tokens == [theirs.get_added_tokens_decoder().get(int(i)) for i in sorted(map(int, decoder))]:
            _compare(found, theirs)
    check_decoder(found, decoder)
    use_tokenizer(folder, found)


def _compare(found: PegasusTokenizer, theirs: Any) -> None:
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False).ids
        if found.text_to_ids(text) != ids:
            raise Wrong(f"the ids of {text!r}: {found.text_to_ids(text)}, of the tokenizers library {ids}")
        for skip in (True, False):
            if found.decode(ids, skip) != theirs.decode(ids, skip_special_tokens=skip):
                raise Wrong(f"the text of {ids}")


def check_decoder(found: PegasusTokenizer, decoder: dict[str, Any]) -> None:
    """Check that every token of `added_tokens_decoder` has the id that it has there."""
    for token_id, token in decoder.items():
        content = token["content"] if isinstance(token, dict) else token
        if content.isprintable() and found.convert_tokens_to_ids(content) != int(token_id):
            raise Wrong(f"{content!r} has the id {found.convert_tokens_to_ids(content)}, in the file {token_id}")


def use_added_tokens(folder: Path, found: PegasusTokenizer) -> None:
    """Compare with the vocabulary without added tokens: they are cut out of a text first, the longest first."""
    config = _entries(folder / "tokenizer_config.json")
    special = _entries(folder / "special_tokens_map.json") if "added_tokens_decoder" not in config else {}
    decoder = config.get("added_tokens_decoder") or {}
    check_decoder(found, decoder)
    ids = {token: int(i) for token, i in found.get_vocab().items() if i >= found.vocab_size}
    for token, i in ids.items():
        if found.encode(token) != [i, 1] or found.decode(i) != token:
            raise Wrong(f"the added token {token!r} with the id {i} becomes {found.encode(token)}, {found.decode(i)!r}")
        listed = json.dumps([config, special]).count(json.dumps(token))
        if not listed and not (folder / "added_tokens.json").exists():
            raise Wrong(f"the token {token!r} is in no file")
    flags = [flag for entry in decoder.values() if isinstance(entry, dict) for flag in FLAGS[:3] if entry.get(flag)]
    known = [t for t in [e["content"] if isinstance(e, dict) else e for e in decoder.values()] if t not in ids]
    plain = PegasusTokenizer(folder / "spiece.model")
    pieces = plain.get_vocab().keys()  # a special token that is a piece keeps the piece's id, and is cut out, too
    known += [
        t for t in found.all_special_tokens if t in pieces and plain.convert_tokens_to_ids(t) > plain.unk_token_id
    ]
    if not flags and not known and ids and "true" not in json.dumps(special):
        cut = re.compile("(" + "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) + ")", re.DOTALL)
        for text in TEXTS:
            parts = [[ids[part]] if i % 2 else plain.text_to_ids(part) for i, part in enumerate(cut.split(text))]
            if (expected := [i for part in parts for i in part]) != found.text_to_ids(text):
                raise Wrong(f"the ids of {text!r}: {found.text_to_ids(text)}, expected {expected}")
    use_tokenizer(folder, found)


def _entries(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8-sig")) if path.exists() else {}
    return found


READERS: dict[str, Reader] = {
    "tokenizer.json": Reader(
        make_tokenizer_json,
        read_tokenizer,
        use_tokenizer_json,
        {"tokenizer.json": TOKENIZER_JSON, "tokenizer_config.json": ADDED},
        2.0,
    ),
    "added tokens": Reader(make_added_tokens, read_tokenizer, use_added_tokens, {"tokenizer_config.json": ADDED}),
    "older tokenizer": Reader(
        make_older_tokenizer,
        read_tokenizer,
        use_added_tokens,
        {"tokenizer_config.json": SETTINGS, "special_tokens_map.json": SETTINGS, "added_tokens.json": SETTINGS},
    ),
}
_ = shutil
