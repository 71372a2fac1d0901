"""Pairs of (long description, one-line synopsis) of Debian's packages: fetched, read, deduplicated, split.

    python tools/demo/corpus.py build/demo          # writes train.jsonl, dev.jsonl, test.jsonl, corpus.json

The split depends on the texts alone: a hash of its description selects a held-out pair, and pairs that share more than
`MAX_SHARED` of a held-out description's 8-word shingles are removed from the training side.
"""

import argparse
import hashlib
import json
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LIST = "*_dists_bookworm_main_i18n_Translation-en*"
SHINGLE = 8  # words
MAX_SHARED = 0.3  # of a held-out description's shingles with any one training description
SHORTEST = 16  # words of a description that is worth a summary
NUM_DEV, NUM_TEST = 300, 500


@dataclass(frozen=True)
class Pair:
    """A package: its name, its long description with one line for each paragraph or list item, and its synopsis."""

    package: str
    description: str
    synopsis: str


def fetch(folder: Path) -> str:
    """Fetch the package descriptions of apt's configured sources and return those of Debian 12.

    Args:
        folder: for apt's lists.

    Returns:
        The Translation-en list as text.
    """
    lists = (folder / "lists").absolute()
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::Lists={lists}", "-o", "Acquire::Languages=en"]
    subprocess.run(["apt-get", *options, "update"], check=True, capture_output=True)
    found = sorted(lists.glob(LIST))
    if len(found) != 1:
        raise SystemExit(f"{lists}: {len(found)} lists match {LIST}: apt needs Debian 12 (bookworm) among its sources")
    helper = ["/usr/lib/apt/apt-helper", "cat-file", str(found[0])]
    return subprocess.run(helper, check=True, capture_output=True).stdout.decode()


def read_pairs(translation: str) -> list[Pair]:
    """Parse a Translation-en list into pairs, sorted by description and without duplicates.

    Args:
        translation: paragraphs with the fields Package and Description-en.
    """
    pairs: dict[str, Pair] = {}
    for paragraph in translation.split("\n\n"):
        package = re.search(r"^Package: (.+)$", paragraph, re.MULTILINE)
        _, found, text = paragraph.partition("Description-en: ")
        if not package or not found:
            continue
        synopsis, _, body = text.partition("\n")
        description = unfold(body)
        is_dummy = re.search(r"transitional|dummy", synopsis, re.IGNORECASE)
        if len(words(description)) >= SHORTEST and len(words(synopsis)) >= 2 and not is_dummy:
            pairs.setdefault(" ".join(words(description)), Pair(package[1], description, synopsis.strip()))
    return [pairs[key] for key in sorted(pairs)]


def unfold(body: str) -> str:
    """Join the lines of each paragraph of a description; a line indented twice is kept, " ." separates paragraphs."""
    lines: list[str] = []
    starts_paragraph = True
    for line in body.splitlines():
        content = line[1:].rstrip()
        if content in ("", "."):
            starts_paragraph = True
        elif starts_paragraph or content.startswith(" ") or not lines:
            lines.append(content.strip())
            starts_paragraph = False
        else:
            lines[-1] += " " + content.strip()
    return "\n".join(lines)


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def shingles(text: str) -> set[str]:
    """Return every run of 8 words of a text; the whole of a shorter text."""
    all_words = words(text)
    return {" ".join(all_words[i : i + SHINGLE]) for i in range(max(1, len(all_words) - SHINGLE + 1))}


def split(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Split pairs so that held-out texts share almost nothing with the training side.

    Args:
        pairs: all pairs, with distinct descriptions.

    Returns:
        Training, development and test pairs. No development or test description shares more than `MAX_SHARED` of its
        shingles with a training description, and none has the synopsis of a training pair.
    """
    ordered = sorted(pairs, key=lambda pair: hashlib.sha256(pair.description.encode()).digest())
    held_out, rest = ordered[: NUM_DEV + NUM_TEST], ordered[NUM_DEV + NUM_TEST :]
    synopses = {pair.synopsis.lower() for pair in held_out}
    leaking = {i for i, shared in enumerate(most_shared(rest, held_out)) if shared > MAX_SHARED}
    train = [pair for i, pair in enumerate(rest) if i not in leaking and pair.synopsis.lower() not in synopses]
    return train, held_out[:NUM_DEV], held_out[NUM_DEV:]


def most_shared(pairs: Sequence[Pair], held_out: Iterable[Pair]) -> list[float]:
    """Compute for each pair the largest fraction of a held-out description's shingles that its description shares."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        for shingle in shingles(pair.description):
            places[shingle].append(i)
    most = [0.0] * len(pairs)
    for pair in held_out:
        own = shingles(pair.description)
        for i, count in Counter(i for shingle in own for i in places.get(shingle, ())).items():
            most[i] = max(most[i], count / len(own))
    return most


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as JSON lines."""
    path.write_text("".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")


def load_pairs(path: Path) -> list[Pair]:
    """Read pairs from JSON lines."""
    return [Pair(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    translation = fetch(folder)
    pairs = read_pairs(translation)
    sides = dict(zip(("train", "dev", "test"), split(pairs), strict=True))
    for side, members in sides.items():
        write_pairs(folder / f"{side}.jsonl", members)
    facts = {
        "translation_sha256": hashlib.sha256(translation.encode()).hexdigest(),
        "pairs": len(pairs),
        **{side: len(members) for side, members in sides.items()},
        "train_sha256": hashlib.sha256((folder / "train.jsonl").read_bytes()).hexdigest(),
    }
    (folder / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
