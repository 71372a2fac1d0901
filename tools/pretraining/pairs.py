"""Pairs for pretraining from a folder of texts: python tools/pretraining/pairs.py FOLDER pairs.jsonl [--ratio 0.3].

Each line has a document, in which the principal sentences are replaced by <mask_1>, and these sentences as its summary.
A text is a file `*.txt` in UTF-8; files without two sentences are counted and left out.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from pegasusx_ref.files.writing import write_text
from pegasusx_ref.golden.gap_sentences import principal_sentences

MASK = "<mask_1>"
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])|\n\s*\n")
WORD = re.compile(r"\w+")


def split_sentences(text: str) -> list[str]:
    """Split a text after ., ! and ? where a capital or a number follows, and at empty lines."""
    return [" ".join(sentence.split()) for sentence in SENTENCE_END.split(text) if sentence and sentence.strip()]


def make_pair(text: str, ratio: float, kept_share: float, rng: random.Random) -> dict[str, str] | None:
    """Mask the principal sentences of a text; None where it has fewer than two sentences.

    Args:
        text: plain text.
        ratio: the share of the sentences that are selected, at least one and not all.
        kept_share: the share of the selected sentences that stay in the document.
        rng: chooses those.
    """
    sentences = split_sentences(text)
    if len(sentences) < 2:
        return None
    count = min(max(1, round(ratio * len(sentences))), len(sentences) - 1)
    selected = principal_sentences([WORD.findall(sentence.lower()) for sentence in sentences], count)
    kept = set(rng.sample(selected, round(kept_share * len(selected))))
    document = (MASK if i in selected and i not in kept else sentence for i, sentence in enumerate(sentences))
    return {"document": " ".join(document), "summary": " ".join(sentences[i] for i in selected)}


def pairs(folder: Path, ratio: float, kept_share: float, seed: int) -> Iterator[dict[str, str] | None]:
    """Yield a pair for each text of a folder, in the order of the files' names; None for one without a pair."""
    rng = random.Random(seed)
    for path in sorted(folder.rglob("*.txt")):
        yield make_pair(path.read_text(encoding="utf-8", errors="replace"), ratio, kept_share, rng)


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 to 1")
    return number


def main(arguments: list[str] | None = None) -> None:
    """Write the pairs of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of texts, *.txt")
    parser.add_argument("out", type=Path, help="JSON lines with document and summary")
    parser.add_argument("--ratio", type=share, default=0.3, help="share of the sentences that are masked")
    parser.add_argument(
        "--kept", type=share, default=0.0, help="share of the selected sentences that stay: 0.2 in PEGASUS"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sentences that stay")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    found = list(pairs(options.folder, options.ratio, options.kept, options.seed))
    lines = [json.dumps(pair, ensure_ascii=False) for pair in found if pair is not None]
    if not lines:
        parser.error(f"{options.folder} has {len(found)} texts (*.txt), none with two sentences")
    write_text(options.out, "".join(f"{line}\n" for line in lines))
    print(f"{options.out}: pairs {len(lines)}, texts without two sentences, left out {len(found) - len(lines)}")


if __name__ == "__main__":
    main()
