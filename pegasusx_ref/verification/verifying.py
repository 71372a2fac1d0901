"""Is an implementation right, and if not, where does it go wrong first? [spec 16]"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.model.inputs import mask as check_mask
from pegasusx_ref.model.inputs import token_ids
from pegasusx_ref.tracing import listen
from pegasusx_ref.verification.arithmetic import ARITHMETICS
from pegasusx_ref.verification.candidates import Candidate
from pegasusx_ref.verification.checking import Check, Checker, Failure, Rows
from pegasusx_ref.verification.diagnosing import Diagnosis, diagnose
from pegasusx_ref.verification.hypotheses import Surroundings
from pegasusx_ref.verification.operations import CheckingOperations
from pegasusx_ref.verification.valid_rows import ValidRows

MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


class Report:
    """What a verification found.

    Args:
        checks: of every tensor that the candidate has, in the order of execution.
        failure: the first tensor that is wrong, or None.
        diagnoses: mistakes that explain it, the best first.
        arithmetic: what the candidate was judged by.
        unknown: names that the candidate has and the model has not.
        config: of the model.
        valid: which rows counted: the masks, and the blocks of every encoder layer.
        rows: how far off each row of a tensor is, by the tensor's name; of a tensor of another shape there is nothing.
    """

    def __init__(
        self,
        checks: list[Check],
        failure: Failure | None,
        diagnoses: list[Diagnosis],
        arithmetic: str,
        unknown: list[str],
        config: PegasusXConfig,
        valid: ValidRows,
        rows: dict[str, Rows],
    ) -> None:
        self.table, self.failure, self.diagnoses = checks, failure, diagnoses
        self.arithmetic, self.unknown = arithmetic, unknown
        self.config, self.valid, self.rows = config, valid, rows

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return self.failure is None

    @property
    def first_failure(self) -> Check | None:
        """The first tensor that does not follow from the candidate's own tensors before it."""
        return None if self.failure is None else self.failure.check


def verify(
    reference: PegasusXForConditionalGeneration,
    candidate: Candidate | Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
    arithmetic: str = "float32",
) -> Report:
    """Check an implementation operation by operation, each from the candidate's own tensors. [spec 16.8]

    Args:
        reference: the model, with the candidate's weights.
        candidate: gives its tensors for the inputs, by trace-point name: `from_transformers`, `from_backend`, any
            function, or a mapping of tensors that are there already.
        inputs: input_ids (B, T), attention_mask (B, T), decoder_input_ids (B, L), decoder_attention_mask (B, L); the
            masks may be missing.
        arithmetic: what the candidate computes in: "float64", "float32", "tf32", "bfloat16", "float16".

    Raises:
        InputError: an arithmetic that is not known, inputs that are missing, or a candidate without any known tensor.

    Source: rounding as random numbers: Higham and Mary 2019, "A new approach to probabilistic rounding error analysis".
    """
    if arithmetic not in ARITHMETICS:
        raise InputError(f"arithmetic={arithmetic!r} is not known: pass one of {', '.join(ARITHMETICS)}")
    config = reference.config
    arrays = _checked(inputs, config.vocab_size)
    tensors = candidate(arrays) if callable(candidate) else candidate
    T = arrays["input_ids"].shape[1]
    blocks = [layer_blocks(config, T, i) for i in range(config.encoder_layers)]
    source, target = (
        np.ones(arrays[ids].shape, dtype=bool) if arrays[mask] is None else arrays[mask] for ids, mask in MASKS.items()
    )
    ops = CheckingOperations(ARITHMETICS[arithmetic])
    model = PegasusXForConditionalGeneration(config, reference.state_dict(), ops)
    valid = ValidRows(source, target, blocks)
    checker = Checker(tensors, valid)
    with listen(checker):
        model(**arrays)
    seen = {check.name for check in checker.checks}
    if not seen:
        names = ", ".join(repr(name) for name in list(tensors)[:3]) or "none at all"
        raise InputError(
            f"the candidate has no tensor of a trace point's name: it has {names}; see pegasusx_ref.TRACE_POINTS"
        )
    failure = checker.failure
    diagnoses = []
    if failure is not None:
        diagnoses = diagnose(failure, ops.arithmetic, Surroundings(config, model.weights, source, failure.beside))
    unknown = sorted(set(tensors) - seen - set(arrays))
    return Report(checker.checks, failure, diagnoses, arithmetic, unknown, config, valid, checker.rows)


def _checked(inputs: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Check ids and masks, all of them, before anything runs."""
    if others := set(inputs) - {*MASKS, *MASKS.values()}:
        raise InputError(f"inputs have {', '.join(sorted(others))}: a run takes {', '.join(MASKS)} and their masks")
    arrays: dict[str, Any] = {}
    for ids, mask in MASKS.items():
        if inputs.get(ids) is None:
            raise InputError(f"there are no {ids}: a run takes {' and '.join(MASKS)}, and a dump has to hold them too")
        arrays[ids] = token_ids(ids, inputs[ids], vocab_size)
        arrays[mask] = check_mask(mask, inputs.get(mask), arrays[ids].shape)
    return arrays
