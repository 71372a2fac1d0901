"""The adapter_config.json of a PEFT adapter: the settings that a merge needs, all others refused by name."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pegasusx_ref.checkpoint.settings import Limits, read_settings
from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.files.reading import reading

REMEDY = "merge it with peft: model.merge_and_unload().save_pretrained(folder)"
RANK = Limits(1, 2**16, "the inner size of the two factors, at most d_model")
ALPHA = Limits(-1e6, 1e6, "a factor of the adapter's weights")
# Settings that a merge does not depend on, whatever their value: they chose modules or the start of a training.
IGNORED = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "alpha_pattern",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type",
    "use_dora", "use_rslora",
}  # fmt: skip
FLAGS = ("use_rslora", "use_dora", "ensure_weight_tying")
# Initializations that leave the base model as it is; the others take their share off its weights.
HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
MAX_ALPHAS = 1000  # each is compared with the name of each module
NAME = re.compile(r"\^?[\w.]+")  # of a module in alpha_pattern; any other regular expression is refused


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The settings of a LoRA adapter.

    Attributes:
        base_model: a folder or a name of the Hub.
        revision: of the base model in the Hub.
        ranks: every rank that a module may have.
        alpha: the scale of a module times its rank, or the square root of that if rank-stabilized.
        alphas: other values by a pattern for the end of a module's name; of several the first counts.
        is_rank_stabilized: whether the scale is alpha / sqrt(rank).
        has_magnitudes: whether the lengths of the rows are trained apart (DoRA).
        saved_modules: ends of the names of modules that the adapter replaces by its own.
        is_tied: whether the adapters of tied tables are one.
    """

    base_model: str
    revision: str | None
    ranks: frozenset[int]
    alpha: float
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    is_rank_stabilized: bool
    has_magnitudes: bool
    saved_modules: tuple[str, ...]
    is_tied: bool

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check the file.

        Raises:
            CheckpointError: it is missing or damaged, or the adapter cannot be merged here.
        """
        values = read_settings(path)
        with reading(path, "the settings of a PEFT adapter", CheckpointError):
            return cls._of(values)

    @classmethod
    def _of(cls, values: dict[str, Any]) -> Self:
        _check_supported(values)
        base, revision = values.get("base_model_name_or_path"), values.get("revision")
        if not isinstance(base, str) or not base or "\0" in base:
            raise CheckpointError(
                f"base_model_name_or_path={shown(base)} must be the folder or the name of the base model"
            )
        if not isinstance(revision, str | None):
            raise CheckpointError(f"revision={shown(revision)} must be a branch, tag or commit")
        ranks, alphas = ({} if (p := values.get(n)) is None else p for n in ("rank_pattern", "alpha_pattern"))
        saved = values.get("modules_to_save") or []
        if not isinstance(ranks, dict) or not isinstance(alphas, dict):
            raise CheckpointError("rank_pattern and alpha_pattern must be objects")
        if len(alphas) > MAX_ALPHAS:
            raise CheckpointError(f"alpha_pattern has {len(alphas):,} entries, at most {MAX_ALPHAS:,} are read")
        if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
            raise CheckpointError(f"modules_to_save={shown(saved)} must be a list of names")
        rank, alpha = values.get("r", 8), values.get("lora_alpha", 8)
        for name, value in [("r", rank), *ranks.items()]:
            RANK.check(name, value)
        for name, value in [("lora_alpha", alpha), *alphas.items()]:
            ALPHA.check(name, value)
            if not NAME.fullmatch(name):
                raise CheckpointError(f"alpha_pattern has the regular expression {shown(name)}: {REMEDY}")
        return cls(
            base_model=base,
            revision=revision,
            ranks=frozenset([rank, *ranks.values()]),
            alpha=float(alpha),
            alphas=tuple((re.compile(rf"(.*\.)?({name})"), float(value)) for name, value in alphas.items()),
            is_rank_stabilized=bool(values.get("use_rslora")),
            has_magnitudes=bool(values.get("use_dora")),
            saved_modules=tuple(saved),
            is_tied=bool(values.get("ensure_weight_tying")),
        )

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of a module's update.

        Args:
            module: its full name in the base model, with ``model.`` if it has one.
            rank: of its factors.
        """
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.fullmatch(module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)


def _check_supported(values: dict[str, Any]) -> None:
    """Refuse what changes the merge in a way that is not written here, known to this version or not."""
    if (kind := values.get("peft_type")) != "LORA":
        raise CheckpointError(f"peft_type={shown(kind)}: only LORA is merged; {REMEDY}, if peft can merge that kind")
    for name, value in values.items():
        if name not in IGNORED and value not in (None, False, "", [], {}):
            raise CheckpointError(f"{shown(name)} is {shown(value)}, which is not supported: {REMEDY}")
    for name in FLAGS:
        if not isinstance(values.get(name), bool | None):
            raise CheckpointError(f"{name}={shown(values[name])} must be true or false")
    start = values.get("init_lora_weights")
    if not isinstance(start, str | bool | None) or start not in HARMLESS_STARTS:
        raise CheckpointError(
            f"init_lora_weights={shown(start)} changed the base model when the training began: save the adapter with "
            f"path_initial_model_for_weight_conversion, or {REMEDY}"
        )
