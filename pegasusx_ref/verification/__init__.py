"""Means to check an implementation: slow oracles of the attention core, and transformers' padded layouts."""

from pegasusx_ref.verification.layouts import to_transformers_attentions
from pegasusx_ref.verification.oracles import dense_attention_oracle, token_attention_oracle, visible_keys

__all__ = ["dense_attention_oracle", "to_transformers_attentions", "token_attention_oracle", "visible_keys"]
