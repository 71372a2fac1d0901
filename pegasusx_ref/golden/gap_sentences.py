"""PEGASUS's pretraining objective: important sentences are masked in a text and become its target. [spec 20]"""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence

Sentence = Sequence[Hashable]  # words or token ids


def rouge_1(candidate: Sentence, reference: Sentence, unique: bool = False) -> float:
    """Compute ROUGE-1 F1, the harmonic mean of the shares of words that two texts have in common. [spec 20.1]

    Args:
        candidate: words.
        reference: words.
        unique: count a repeated word once in each text.

    Returns:
        From 0 to 1; 0 where a text is empty.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    own, other = (Counter(set(words) if unique else words) for words in (candidate, reference))
    common = (own & other).total()
    return 2 * common / (own.total() + other.total()) if common else 0.0


def principal_sentences(
    sentences: Sequence[Sentence], count: int, sequential: bool = False, unique: bool = False
) -> list[int]:
    """Select the sentences that have most in common with the rest of the text. [spec 20.2]

    Args:
        sentences: words of each sentence.
        count: sentences to select.
        sequential: select one after the other, each so that all selected ones together have most in common with the
            rest; otherwise each sentence is scored alone.
        unique: see `rouge_1`.

    Returns:
        Numbers of the selected sentences, in the order of the text. Of equal ones the earlier is selected.

    Source: arXiv 1912.08777 section 3.1.1: Ind or Seq, Orig or Uniq; the published models are trained with Ind-Orig.
    """
    selected: list[int] = []
    scores = [agreement(sentences, {i}, unique) for i in range(len(sentences))]
    while len(selected) < min(count, len(sentences)):
        if sequential:
            scores = [agreement(sentences, {*selected, i}, unique) for i in range(len(sentences))]
        rest = (i for i in range(len(sentences)) if i not in selected)
        selected.append(max(rest, key=lambda i: scores[i]))
    return sorted(selected)


def agreement(sentences: Sequence[Sentence], selected: Collection[int], unique: bool) -> float:
    """Compute ROUGE-1 F1 of some sentences with all others. [spec 20.3]

    Args:
        sentences: words of each sentence.
        selected: numbers of sentences.
        unique: see `rouge_1`.
    """
    inside = [word for i in sorted(selected) for word in sentences[i]]
    outside = [word for i, sentence in enumerate(sentences) if i not in selected for word in sentence]
    return rouge_1(inside, outside, unique)


def mask_sentences(
    sentences: Sequence[Sequence[int]], selected: Collection[int], mask_id: int, kept: Collection[int] = ()
) -> tuple[list[int], list[int]]:
    """Replace each selected sentence by one mask token; together they are the target. [spec 20.4]

    Args:
        sentences: token ids of each sentence.
        selected: numbers of the sentences to mask.
        mask_id: the id of ``<mask_1>``.
        kept: selected sentences that stay in the source too, so that the model learns to copy.

    Returns:
        Token ids of the source and of the target, without end tokens.

    Source: arXiv 1912.08777 sections 3.1.1 and 6.2, where a fifth of the selected sentences is kept.
    """
    source, target = list[int](), list[int]()
    for i, sentence in enumerate(sentences):
        source += [mask_id] if i in selected and i not in kept else sentence
        target += sentence if i in selected else []
    return source, target
