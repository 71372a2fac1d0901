"""Candidates: where the tensors of an implementation come from, and how they are named."""
