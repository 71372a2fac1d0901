"""What a candidate shows of a run, and what the inputs of the run can show. [spec 16]"""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

import numpy as np

from pegasusx_ref.errors import shown as shown_value
from pegasusx_ref.golden.head import IGNORED_LABEL
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.rendering.tables import counted
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general
from pegasusx_ref.verification.candidates.inputs import random_ids
from pegasusx_ref.verification.verdicts import Coverage

MAX_LISTED = 10  # names that a report lists; only these have a nearest one, whose search takes time
NEAR, NEAR_ON_SIDE = 0.6, 0.8  # similarities of a name to its nearest one: of parts of names, of names on one side
LATE = 1024  # the float32 error of a later position exceeds other roundings


def coverage(shown: Sequence[str], missing: Sequence[str], names: Collection[object]) -> Coverage:
    """Compare the names of a candidate with those of a run.

    Args:
        shown: tensors of the run that the candidate has.
        missing: tensors of the run that it does not have.
        names: all names of the candidate.
    """
    run = {*shown, *missing}
    others = sorted({name if isinstance(name, str) else shown_value(name) for name in names} - set(shown))
    listed = {name: nearest(name, run) for name in others[:MAX_LISTED]}
    return Coverage(len(shown), list(missing), dict.fromkeys(others, "") | listed)


def nearest(name: str, run: Collection[str]) -> str:
    """Return the tensor of a run, or the end of a trace point, that a name resembles; "" if there is none.

    Args:
        name: an unknown one.
        run: names of a run.
    """
    point, side = general(name), name.partition(".")[0]
    if side in ("encoder", "decoder"):
        known, cutoff = [other for other in TRACE_POINTS if other.startswith(f"{side}.")], NEAR_ON_SIDE
    else:  # a name such as token.fc1 is near the end of some trace points
        parts = point.count(".") + 1
        known, cutoff = sorted({".".join(other.split(".")[-parts:]) for other in TRACE_POINTS}), NEAR
    found = next(iter(get_close_matches(point, known, n=1, cutoff=cutoff)), "")
    for letter, number in zip(("{i}", "{n}"), re.findall(r"\.(\d+)\b", name), strict=False):
        found = found.replace(letter, number)
    return found if found in run or side not in ("encoder", "decoder") else ""


def is_elsewhere(name: str) -> bool:
    """Return whether an unknown name is that of a trace point, in a layer or block that the run does not have."""
    return general(name) in TRACE_POINTS


def blind_spots(config: PegasusXConfig, source_mask_BT: np.ndarray, target_mask_BL: np.ndarray) -> list[str]:
    """List the faults that no run on these inputs shows.

    Args:
        config: of the model.
        source_mask_BT: True where a source token is real.
        target_mask_BL: True where a target token is real.
    """
    (B, T), L, K = source_mask_BT.shape, target_mask_BL.shape[1], config.block_size
    tokens = counted(T, "token")
    spots = {
        "faults of the source's mask (no padding)": source_mask_BT.all(),
        "faults of the target's mask (no padding)": target_mask_BL.all(),
        "rows of the batch that are mixed up (one text)": B == 1,
        f"faults of blocks ({tokens} {'fits' if T == 1 else 'fit'} into one block of {K})": T <= K,
        f"faults of a last block that is not full ({tokens} are whole blocks of {K})": T > K and T % K == 0,
        "faults of the causal mask and of target positions (one target token)": L == 1,
        f"faults of late positions ({tokens}, below {LATE})": T < LATE,
    }
    return [spot for spot, is_here in spots.items() if is_here]


def suggested_inputs(config: PegasusXConfig, seed: int = 0, gradients: bool = False) -> dict[str, np.ndarray]:
    """Draw ids and masks of a batch that shows all that padding behind the tokens can show. [spec 16.20]

    Args:
        config: of the model.
        seed: of the ids.
        gradients: draw labels too.

    Returns:
        input_ids, attention_mask (3, T), decoder_input_ids, decoder_attention_mask (3, 12): one text fills its row, one
        ends inside a block, one is shorter than a block. And labels (3, 12), the next token each; -100 in padding.
    """
    rng, K = np.random.default_rng(seed), config.block_size
    T = max(2 * K + 1, LATE)
    T += next(more for more in range(1, K + 2) if (T + more) % K not in (0, K // 2) or K <= 2)
    lengths = {"": [T, T // 2 + 1, max(1, K // 2 - 1)], "decoder_": [12, 9, 5]}
    found: dict[str, np.ndarray] = {}
    for prefix, real in lengths.items():
        found[f"{prefix}input_ids"] = random_ids(rng, config.vocab_size, (3, max(real)))
        found[f"{prefix}attention_mask"] = np.arange(max(real)) < np.array(real)[:, None]
    found["decoder_input_ids"][:, 0] = config.decoder_start_token_id
    if gradients:
        following = np.append(found["decoder_input_ids"][:, 1:], random_ids(rng, config.vocab_size, (3, 1)), axis=1)
        found["labels"] = np.where(found["decoder_attention_mask"], following, IGNORED_LABEL)
    return found
