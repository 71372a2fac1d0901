"""Fine-tuning on pairs of a document and its summary: a run that can be killed at any moment and resumed bit for bit.

It needs torch. The guide spec/guides/fine-tuning.md leads through it.
"""

from pegasusx_ref.errors import ExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise ExtraError("fine-tuning needs torch: pip install 'pegasusx-ref[finetune]'") from None

from pegasusx_ref.finetuning.curves import curves_figure
from pegasusx_ref.finetuning.run import Finetuning
from pegasusx_ref.finetuning.settings import Settings

__all__ = ["Finetuning", "Settings", "curves_figure"]
