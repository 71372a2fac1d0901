"""One table that embeds tokens and scores them: its gradient is collected in place, because it is large."""

from typing import Any

import torch
from torch import Tensor


class TiedTable(torch.autograd.Function):
    """The uses of a table: rows for token ids, and the table itself for the head."""

    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, padding_id: int, *ids: Tensor) -> tuple[Tensor, ...]:
        """Return the table, and its rows for each tensor of ids (..., D).

        Args:
            ctx: keeps what `backward` needs.
            table_VD: the table.
            padding_id: the row that gets no gradient from its uses as an embedding.
            ids: token ids (...).
        """
        ctx.padding_id, ctx.shape = padding_id, table_VD.shape
        ctx.save_for_backward(*ids)
        ctx.set_materialize_grads(False)
        return table_VD.view_as(table_VD), *(table_VD[i] for i in ids)

    @staticmethod
    def backward(ctx: Any, grad_VD: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Add the gradients of rows to that of the table in place, which nothing else holds.

        Args:
            ctx: see `forward`.
            grad_VD: of the table.
            grads: of the rows.
        """
        for ids, grad in zip(ctx.saved_tensors, grads, strict=True):
            if grad is not None:
                grad_VD = grad.new_zeros(ctx.shape) if grad_VD is None else grad_VD
                is_token = ids != ctx.padding_id
                grad_VD.index_add_(0, ids[is_token], grad[is_token])
        return grad_VD, None, *(None for _ in grads)
