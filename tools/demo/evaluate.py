"""ROUGE of a checkpoint on held-out pairs, beside the description's first eight words, with bootstrap intervals.

python tools/demo/evaluate.py build/demo/test.jsonl --model build/demo/checkpoint
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from corpus import load_pairs
from rouge_score.rouge_scorer import RougeScorer

from pegasusx_ref import pipeline

KINDS = ("rouge1", "rouge2", "rougeL")
NUM_RESAMPLES = 10_000


def rouge(references: list[str], candidates: list[str]) -> np.ndarray:
    """Compute ROUGE-1, ROUGE-2 and ROUGE-L of each candidate: F-measures in percent with Porter stemming (N, 3)."""
    scorer = RougeScorer(KINDS, use_stemmer=True)
    scores = [scorer.score(reference, text) for reference, text in zip(references, candidates, strict=True)]
    return np.array([[100 * score[kind].fmeasure for kind in KINDS] for score in scores])


def lead(text: str, num_words: int = 8) -> str:
    """Return the first words of a text."""
    return " ".join(text.split()[:num_words])


def interval(values: np.ndarray, rng: np.random.Generator) -> list[float]:
    """Compute the 95 % bootstrap interval of the mean of values (N,)."""
    means = values[rng.integers(0, len(values), (NUM_RESAMPLES, len(values)))].mean(axis=1)
    return [round(float(bound), 2) for bound in np.percentile(means, [2.5, 97.5])]


def report(model_scores: np.ndarray, lead_scores: np.ndarray) -> dict[str, Any]:
    """Compute means and intervals of the model, of the lead, and of their paired difference."""
    rng = np.random.default_rng(0)
    compared = {"model": model_scores, "lead-8": lead_scores, "difference": model_scores - lead_scores}
    return {
        kind: {who: [round(float(s[:, i].mean()), 2), interval(s[:, i], rng)] for who, s in compared.items()}
        for i, kind in enumerate(KINDS)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--num-beams", type=int)
    parser.add_argument("--length-penalty", type=float)
    parser.add_argument("--show", type=int, default=0, help="number of examples to print")
    args = parser.parse_args()
    pairs = load_pairs(args.pairs)
    summarizer = pipeline("summarization", args.model)
    settings = {"num_beams": args.num_beams, "length_penalty": args.length_penalty}
    found: Any = summarizer([pair.description for pair in pairs], **settings)
    summaries = [summary["summary_text"] for summary in found]
    for pair, summary in list(zip(pairs, summaries, strict=True))[: args.show]:
        print(f"{pair.package}\n  written: {summary}\n  Debian:  {pair.synopsis}")
    references = [pair.synopsis for pair in pairs]
    leads = [lead(pair.description) for pair in pairs]
    print(json.dumps(report(rouge(references, summaries), rouge(references, leads)), indent=2))


if __name__ == "__main__":
    main()
