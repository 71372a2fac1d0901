"""Pictures of who sees whom: index maps, how far a token is heard, attention in blocks, cross-attention by word."""

from pegasusx_ref.study.pictures.drawing import attention_in_blocks, cross_attention, index_map, spread

__all__ = ["attention_in_blocks", "cross_attention", "index_map", "spread"]
