"""Many documents: a callable for the batches of any engine, and a run over files that can be resumed."""

from pegasusx_ref.corpus.ray_engine import RayEngine
from pegasusx_ref.corpus.run import SHARD_ROWS, Progress, summarize_corpus
from pegasusx_ref.corpus.summarizer import BATCH_SIZE, BATCH_TOKENS, LONG, Summarizer, Summary

__all__ = [
    "BATCH_SIZE",
    "BATCH_TOKENS",
    "LONG",
    "SHARD_ROWS",
    "Progress",
    "RayEngine",
    "Summarizer",
    "Summary",
    "summarize_corpus",
]
