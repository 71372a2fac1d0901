"""Many documents: a callable for the batches of any engine, and a run over files that can be resumed."""

from pegasusx_ref.corpus.run import Progress, summarize_corpus
from pegasusx_ref.corpus.summarizer import LONG, Summarizer, Summary

__all__ = ["LONG", "Progress", "Summarizer", "Summary", "summarize_corpus"]
