"""Added tokens: their entries in a checkpoint's files, their ids, and where they stand in a text. [spec 2.4]"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

from pegasusx_ref.checkpoint.settings import is_integer
from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.tokenizer.vocabulary import MAX_ID, MAX_LENGTH, UNKNOWN, AddedToken

FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
NAMED = ("bos_token", "sep_token", "cls_token")  # the other names have fixed tokens
LISTS = ("additional_special_tokens", "extra_special_tokens")


def read_added_tokens(entries: Mapping[str, Any]) -> list[tuple[int | None, AddedToken]]:
    """Read the added tokens from the entries of tokenizer_config.json.

    Args:
        entries: of them, `added_tokens_decoder` has ids and flags; the special tokens of other entries have ids only if
            they are there, too.

    Returns:
        The tokens in the order in which they get ids, each with its id or None; no two have the same text.

    Raises:
        CheckpointError: an entry that is no token, or two with the same text.
    """
    decoder = entries.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise CheckpointError(f"added_tokens_decoder={shown(decoder)} must be an object of tokens by id")
    by_id = [(_as_id(key), _as_token(entry)) for key, entry in decoder.items()]
    found: dict[str, tuple[int | None, AddedToken]] = {}
    for token_id, token in sorted(by_id, key=itemgetter(0)):
        if token.content in found:
            raise CheckpointError(f"{shown(token.content)} has two ids, {found[token.content][0]} and {token_id}")
        found[token.content] = (token_id, token)
    for token in special_tokens(entries):
        given, known = found.get(token.content, (None, token))
        found[token.content] = (given, replace(known, special=True))
    return list(found.values())


def special_tokens(entries: Mapping[str, Any]) -> list[AddedToken]:
    """Read the special tokens that a file names, in the order in which transformers gives them ids.

    Raises:
        CheckpointError: an entry that is no token.
    """
    found = [entries.get(name) for name in NAMED]
    for name in LISTS:
        values = entries.get(name) or []
        if not isinstance(values, list | dict):
            raise CheckpointError(f"{name}={shown(values)} must be a list of tokens")
        found += values.values() if isinstance(values, dict) else values
    return [_as_token(entry, special=True) for entry in found if entry is not None]


def by_text(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the special tokens in the entries of tokenizer_config.json by their texts.

    Transformers 5 does not read the objects of an older special_tokens_map.json there.
    """

    def text(entry: Any) -> Any:
        return entry.get("content", entry) if isinstance(entry, dict) else entry

    names = [name for name in entries if name.endswith("_token")]
    lists = [name for name in LISTS if isinstance(entries.get(name), list)]
    return {
        **entries,
        **{name: text(entries[name]) for name in names},
        **{name: [text(entry) for entry in entries[name]] for name in lists},
    }


def decoder_entries(ids: Mapping[str, Any], special: Iterable[str]) -> dict[str, Any]:
    """Convert the entries of added_tokens.json to those of `added_tokens_decoder`.

    Args:
        ids: by the tokens' texts.
        special: the texts of special tokens.

    Raises:
        CheckpointError: an id that is none, or two tokens with the same one.
    """
    special, found = set(special), {}
    for text, token_id in ids.items():
        if str(_as_id(token_id)) in found:
            raise CheckpointError(f"two tokens have the id {token_id}, one is {shown(text)}")
        found[str(token_id)] = AddedToken(text, normalized=text not in special, special=text in special).to_dict()
    return found


def _as_id(value: Any) -> int:
    number = int(value) if isinstance(value, str) and re.fullmatch(r"0|[1-9]\d{0,8}", value, re.ASCII) else value
    if not is_integer(number) or not 0 <= number < MAX_ID:
        raise CheckpointError(f"{shown(value)} is not the id of a token: it must be an integer below {MAX_ID:,}")
    return number


def _as_token(entry: Any, special: bool = False) -> AddedToken:
    entry = {"content": entry} if isinstance(entry, str) else entry
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not 1 <= len(content) <= MAX_LENGTH:
        forms = f"a text of 1 to {MAX_LENGTH:,} characters, or an object that has it as content"
        raise CheckpointError(f"{shown(entry)} is not a token: it must be {forms}")
    flags = {name: entry.get(name, False) for name in FLAGS}
    flags["special"] = special or flags["special"]
    flags["normalized"] = entry.get("normalized", not flags["special"])
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise CheckpointError(f"{shown(entry)} is not a token: {', '.join(FLAGS)} must be true or false")
    return AddedToken(content, **flags)


def with_ids(
    tokens: Iterable[tuple[int | None, AddedToken]], size: int, known_id: Callable[[str], int | None]
) -> dict[int, AddedToken]:
    """Give every added token its id: the file's, that of the piece with its text, or the next one.

    Args:
        tokens: of `read_added_tokens`.
        size: of the vocabulary without them.
        known_id: returns the id of a piece or a reserved token, None for another text.

    Returns:
        The tokens by id, without the reserved ones.

    Raises:
        CheckpointError: a token whose id belongs to another one.
    """
    found: dict[int, AddedToken] = {}
    following = size
    for given, token in tokens:
        known = known_id(token.content)
        token_id = known if known is not None else following if given is None else given
        if given not in (None, token_id):
            raise CheckpointError(f"{shown(token.content)} has the ids {given} and {token_id}: a token has one")
        if token_id in found or (known is None and token_id < size):
            raise CheckpointError(f"{shown(token.content)} has the id {token_id}, which is another token's")
        following = max(following, token_id + 1)
        found[token_id] = token
    return {token_id: token for token_id, token in found.items() if token_id > UNKNOWN}


class AddedTokens:
    """Finds added tokens in texts.

    Args:
        tokens: the tokens by id.
    """

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self.ids = {token.content: token_id for token_id, token in tokens.items()}
        self.tokens = tokens
        self._lengths: dict[str, list[int]] = {}  # by the first character, the longest first
        for text in sorted(self.ids, key=len, reverse=True):
            lengths = self._lengths.setdefault(text[0], [])
            if len(text) not in lengths[-1:]:
                lengths.append(len(text))
        self._first = re.compile(f"[{re.escape(''.join(self._lengths))}]") if self._lengths else None

    def split(self, text: str) -> list[str | int]:
        """Split a text at the added tokens in it. [spec 2.4]

        From the left, the longest token that begins at a character is found. It takes whitespace beside it if it has
        the flag. A token with single_word whose neighbour is not a space becomes the end or the beginning of the text
        beside it.

        Args:
            text: any text.

        Returns:
            Texts and the ids between them; no text is empty.

        Source: HF `PreTrainedTokenizer.tokenize` before transformers 5. There a token beside one with single_word is
        taken for text.
        """
        texts, ids, start = [], [], 0
        for begin, end in self._matches(text):
            texts.append(text[start:begin])
            ids.append(self.ids[text[begin:end]])
            start = end
        texts.append(text[start:])

        parts: list[str | int] = []
        for i, token_id in enumerate(ids):
            token, left, right = self.tokens[token_id], texts[i], texts[i + 1]
            kept: list[str | int] = [token_id]
            texts[i] = left.rstrip() if token.lstrip else left
            texts[i + 1] = right.lstrip() if token.rstrip else right
            if token.single_word and left and left[-1] != " ":
                texts[i], kept = texts[i] + token.content, []
            elif token.single_word and right and right[0] != " ":
                texts[i + 1], kept = token.content + texts[i + 1], []
            parts += [texts[i], *kept]
        return [part for part in (*parts, texts[-1]) if part != ""]

    def _matches(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where the tokens in a text begin and end."""
        start = 0
        while self._first is not None and (found := self._first.search(text, start)):
            start = found.start()
            lengths = self._lengths[text[start]]
            end = next((start + n for n in lengths if text[start : start + n] in self.ids), None)
            if end is not None:
                yield start, end
            start = end or start + 1
