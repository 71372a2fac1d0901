"""What may be wrong in one step of decoding: the position of its token, or the cache that it sees. [spec 16]"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.backend.quantized import dense
from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.files.reading import reading
from pegasusx_ref.golden.attention import merge_heads, softmax, split_heads
from pegasusx_ref.golden.embedding import sinusoidal_positions
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.verification.candidates.steps import CACHE
from pegasusx_ref.verification.checking.operations import HIDDEN
from pegasusx_ref.verification.generation.cache_changes import (
    Change,
    cache_changes,
    source_changes,
    unfilled_slots,
)

MASKED = -1e9  # finite: a row may be masked as a whole


class StepFinding(NamedTuple):
    """A fault of a step.

    Attributes:
        step: the first step that shows it, from 0.
        tensor: the name of the wrong tensor.
        mistake: in words; "" if it is not known.
    """

    step: int
    tensor: str
    mistake: str


class Decoding(NamedTuple):
    """A candidate's decoding.

    Attributes:
        steps: the tensors of each step.
        tensors: the assembled tensors whose shapes are right.
        weights: of the model.
        heads: H.
        mask_BT: of the source, True where a token is real; None if all are.
        tolerance: relative to the largest number.
    """

    steps: list[dict[str, np.ndarray]]
    tensors: Mapping[str, np.ndarray]
    weights: Mapping[str, Any]
    heads: int
    mask_BT: np.ndarray | None
    tolerance: float

    def is_near(self, one: np.ndarray, other: np.ndarray, size: float = 0.0) -> bool:
        """Compare arrays, relative to the largest number."""
        near = self.tolerance * max(size, np.abs(other).max(initial=0.0))
        return one.shape == other.shape and bool(np.abs(one - other).max(initial=0.0) <= near)

    def cache_findings(self) -> Iterator[StepFinding]:
        """Compare the caches that are shown with the keys and values of the steps so far, and of the source."""
        for name in dict.fromkeys(name for step in self.steps for name in step if "_attn.cache." in name):
            place, _, kind = name.rpartition(".cache.")[0], *name.rpartition(".")[1:]
            projected, is_source = self.tensors.get(f"{place}.{kind}_proj"), place.endswith(".encoder_attn")
            own = CACHE.format(*name.split(".")[2:3], kind)
            if projected is None or name not in (own, own.replace("self_attn", "encoder_attn")):
                continue
            all_rows = split_heads(projected.astype(np.float64), self.heads)
            for t, step in enumerate(self.steps):
                if name not in step:
                    continue
                n = all_rows.shape[2] if is_source else t + 1
                with reading(f"step {t}: tensor {shown(name)}", "an array of numbers", InputError):
                    cache, rows = step[name].astype(np.float64), all_rows[:, :, :n]
                if cache.ndim == 3 and cache.shape[2] == projected.shape[2]:
                    cache = split_heads(cache, self.heads)
                if cache.ndim == 4 and not cache[:, :, n:].any():  # the slots of a static cache for later tokens
                    cache = cache[:, :, :n]
                if self.is_near(cache, rows):
                    continue
                changes = (source_changes if is_source else cache_changes)(n, len(rows)).items()
                words = next((words for words, change in changes if self.is_near(cache, change(rows))), "")
                expected = "those of the source" if is_source else "the rows so far"
                yield StepFinding(t, name, words or f"the cache of shape {cache.shape} differs from {expected}")
                break

    def mistakes(self, name: str, step: int) -> list[str]:
        """Find what may be wrong in one step of a tensor.

        Args:
            name: of the tensor.
            step: the step.
        """
        if name == "decoder.embeddings" and "decoder.embed_tokens" in self.tensors:
            return self._positions(self.tensors[name], self.tensors["decoder.embed_tokens"], step)
        place, _, point = name.rpartition(".")
        projected = [self.tensors[key] for part in "qkv" if (key := f"{place}.{part}_proj") in self.tensors]
        if not place.endswith("_attn") or len(projected) < len("qkv") or point in ("q_proj", "k_proj", "v_proj"):
            return []
        q, k, v = (split_heads(x.astype(np.float64), self.heads) for x in projected)
        q, found = q[:, :, step : step + 1] * q.shape[3] ** -0.5, self.steps[step][name].astype(np.float64)
        if place.endswith(".encoder_attn"):
            changes, mask_BT = source_changes(k.shape[2], len(k)), self.mask_BT
        else:
            k, v, mask_BT = k[:, :, : step + 1], v[:, :, : step + 1], None
            changes = cache_changes(step + 1, len(k)) | unfilled_slots(len(self.steps))
        if point in ("scores", "probs") and mask_BT is None:  # of the keys that the step sees
            found = found[..., (found > (HIDDEN if point == "scores" else 0)).all(axis=(0, 1, 2))]
        weight = dense(self.weights[f"{place}.out_proj.weight"], np.float64) if point == "out_proj" else None

        def expected(change: Change) -> np.ndarray:
            keys, seen = change(k), np.ones((1, 1, 1, 1), dtype=bool)
            if mask_BT is not None:  # it is masked where the source is, whatever row stands there
                seen = mask_BT[:, None, :, None]
                seen = (seen if keys.shape[2] == k.shape[2] else change(seen)).swapaxes(2, 3)
            scores = q @ keys.swapaxes(2, 3)
            probs = softmax(np.where(seen, scores, MASKED))
            context = probs @ change(v)
            if weight is not None:
                return linear(merge_heads(context), weight)
            tensor: np.ndarray = {"scores": scores * seen, "probs": probs}.get(point, context)
            return tensor

        if point == "scores" and mask_BT is not None and found.shape[3] == mask_BT.shape[1]:
            found = np.where(mask_BT[:, None, None], found, 0.0)
        return [words for words, change in changes.items() if self.is_near(found, expected(change))]

    def _positions(self, embeddings: np.ndarray, tokens: np.ndarray, step: int) -> list[str]:
        """Compare the position of a step's token with others."""
        row = embeddings[:, step].astype(np.float64) - tokens[:, step]
        size = max(1.0, float(np.abs(embeddings).max()))
        others = {step - 1: "one too early", step + 1: "one too late", 0: "0", 1: "1"}
        return [
            f"the position of the token is {words}"
            for p, words in others.items()
            if 0 <= p != step
            and self.is_near(row, np.broadcast_to(sinusoidal_positions(p, 1, row.shape[1]), row.shape), size)
        ]
