"""Evaluation on held-out pairs: the loss, and ROUGE of generated summaries."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pegasusx_ref.errors import ExtraError, NumericsError
from pegasusx_ref.finetuning.batches import Example, by_length, collate, num_labels
from pegasusx_ref.finetuning.settings import Settings
from pegasusx_ref.finetuning.workers import Workers
from pegasusx_ref.model.torch_module import PegasusXTorchModule
from pegasusx_ref.summarization import SummarizationPipeline

ROUGE = ("rouge1", "rouge2", "rougeL")


def rouge_scorer() -> Any:
    """Return a scorer of ROUGE with Porter stemming.

    Raises:
        ExtraError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ExtraError(
            "ROUGE needs rouge-score: pip install 'pegasusx-ref[finetune]', or set eval_summaries to 0"
        ) from None
    return RougeScorer(ROUGE, use_stemmer=True)


def evaluate(
    module: PegasusXTorchModule, tokenizer: Any, examples: Sequence[Example], settings: Settings, workers: Workers
) -> dict[str, float]:
    """Evaluate a module; the processes share the work.

    Args:
        module: without dropout while this runs.
        tokenizer: the model's.
        examples: the first `eval_summaries` of them are summarized.
        settings: of the run.
        workers: its processes.

    Returns:
        ``eval_loss``, in nats a label without smoothing; ROUGE's F-measures in percent.

    Raises:
        NumericsError: the loss is not finite.
    """
    module.eval()
    share = slice(workers.rank, None, workers.count)
    loss, labels, scores = 0.0, 0, np.zeros(len(ROUGE))
    with torch.no_grad():
        for batch in by_length(examples, settings.batch_size)[share]:
            loss += float(module(**collate(batch)).loss) * num_labels(batch)
            labels += num_labels(batch)
    chosen = examples[: settings.eval_summaries]
    if chosen:
        scorer = rouge_scorer()
        summarizer = SummarizationPipeline(module.to_model(module.ops.dtype), tokenizer)
        for batch in by_length(chosen, settings.batch_size)[share]:
            inputs = {name: array for name, array in collate(batch).items() if name != "labels"}
            for example, (summary, *_) in zip(batch, summarizer.generate(inputs, seed=settings.seed), strict=True):
                found = scorer.score(example.target, summary)
                scores += [100 * found[kind].fmeasure for kind in ROUGE]
    loss, labels, *sums = workers.total([loss, labels, *scores]).tolist()
    if not math.isfinite(loss):
        raise NumericsError(f"the loss of the evaluation is {loss}")
    return {"eval_loss": loss / labels} | {kind: s / len(chosen) for kind, s in zip(ROUGE, sums, strict=True) if chosen}
