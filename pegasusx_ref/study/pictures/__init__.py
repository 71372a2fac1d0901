"""Figures of attention: index maps, one token's reach, local attention in blocks, cross-attention by word."""

from pegasusx_ref.study.pictures.figures import attention_in_blocks, cross_attention, index_map, spread

__all__ = ["attention_in_blocks", "cross_attention", "index_map", "spread"]
