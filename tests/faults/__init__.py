"""The suite of single faults: for each, the injected bug, the tensor that `verify` must flag, and the diagnosis.

Most faults are injected into a live transformers model, the others into its tensors after a run. Each kind of fault
occurs once, although it could be in any layer. The tensor to flag follows from the fault, not from what `verify` finds.
"""

from faults.attention import SCORES, SOFTMAX, VALUES
from faults.caches import CACHES
from faults.embeddings import EMBEDDING, POSITIONS
from faults.fault import Fault, exact_positions
from faults.heads import HEADS
from faults.layer_norm import LAYER_NORM
from faults.mask_kinds import BLOCK_KINDS, MASK_KINDS
from faults.masks_and_blocks import BLOCKS, MASKS
from faults.rounding import ROUNDING
from faults.softmax_and_tiles import SOFTMAX_STEPS
from faults.stored import STORED
from faults.streams import ACTIVATIONS, STREAMS
from faults.weights import WEIGHTS

SUITE = {
    "LayerNorm": LAYER_NORM,
    "Embedding": EMBEDDING,
    "Positions": POSITIONS,
    "Scores": SCORES,
    "Blocks": BLOCKS,
    "Masks": MASKS,
    "Softmax": SOFTMAX,
    "Kinds of softmax": SOFTMAX_STEPS,
    "Values": VALUES,
    "Heads": HEADS,
    "Caches": CACHES,
    "Kinds of masks": MASK_KINDS,
    "Kinds of blocks": BLOCK_KINDS,
    "Weights": WEIGHTS,
    "Rounding": ROUNDING,
    "Activation": ACTIVATIONS,
    "Streams": STREAMS,
    "Stored tensors": STORED,
}
FAULTS = [fault for faults in SUITE.values() for fault in faults]

__all__ = ["FAULTS", "SUITE", "Fault", "exact_positions"]
