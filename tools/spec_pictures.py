"""Draw the pictures of the specification: ``python tools/spec_pictures.py`` from the root of the repository.

Each picture stores a fingerprint of its figure, which tests/test_spec_pictures.py compares with the current figure.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref import DEMO_CHECKPOINT, PegasusXConfig, pipeline
from pegasusx_ref.study import pictures
from pegasusx_ref.study.pictures.attention_probabilities import (
    average_by_word,
    cross_attention_probs,
    local_attention_probs,
)

FOLDER = Path(__file__).parents[1] / "spec" / "pictures"
TEXT = (
    "Starling is a desktop program that draws maps of the night sky. "
    "It shows stars, planets and comets for any place and time."
)
DPI = 100


def figures() -> dict[str, Any]:
    """Draw all figures, by file name."""
    tiny, base = PegasusXConfig.preset("tiny"), PegasusXConfig.preset("base")
    summarizer = pipeline("summarization", DEMO_CHECKPOINT, dtype="float64")
    model, name_of = summarizer.model, summarizer.tokenizer.convert_ids_to_tokens
    ids = summarizer.encode(TEXT).input_ids
    written = model.generate(ids)
    probs = cross_attention_probs(model, ids, written, layer=2)
    rows, words = average_by_word(probs, name_of(written[0, 1:].tolist()))
    key_mask = np.arange(29) < 26
    return {
        "index-map-0.png": pictures.index_map(tiny, 29, 0, key_mask),
        "index-map-1.png": pictures.index_map(tiny, 29, 1, key_mask),
        "spread.png": pictures.spread(base, 16384, 8000),
        "attention.png": pictures.attention_in_blocks(*local_attention_probs(model, ids, layer=1)),
        "cross-attention.png": pictures.cross_attention(rows, name_of(ids[0].tolist()), words),
    }


def fingerprint(figure: Any) -> str:
    """Hash the content of a figure, not its pixels: cells to four digits, rectangles with their colours, texts."""
    seen: list[object] = [figure.get_suptitle()]
    for axes in figure.axes:
        labels = [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
        seen += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        seen += labels if axes.images else []  # elsewhere they depend on matplotlib
        seen += [np.round(image.get_array().filled(-1), 4).tolist() for image in axes.images]
        seen += [(*np.round(p.get_bbox().bounds, 4).tolist(), p.get_facecolor()) for p in axes.patches]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def main() -> None:
    """Write the pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, figure in figures().items():
        figure.savefig(FOLDER / name, dpi=DPI, metadata={"Description": fingerprint(figure), "Software": None})
        print(f"{name}: {(FOLDER / name).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
