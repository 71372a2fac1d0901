"""The log of a run: a line of log.csv for each step, and TensorBoard's files."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pegasusx_ref.errors import ExtraError, OutputError, reason
from pegasusx_ref.files.writing import write_text
from pegasusx_ref.finetuning.evaluation import ROUGE

COLUMNS = ("step", "loss", "learning_rate", "tokens_per_second", "eval_loss", *ROUGE)


class Log:
    """Writes what each step yields.

    Args:
        folder: of the run.
        step: number of steps so far; lines of later ones, which are going to be repeated, are removed.
        tensorboard: write files of TensorBoard too.

    Raises:
        ExtraError: tensorboard is not installed.
        OutputError: the log cannot be written.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self._tensorboard = summary_writer()(str(folder / "tensorboard"), purge_step=step + 1) if tensorboard else None
        self.path = folder / "log.csv"
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if step and self.path.exists() else []
        write_text(self.path, ",".join(COLUMNS) + "\n" + "".join(lines[1 : step + 1]))

    def append(self, record: Mapping[str, float]) -> None:
        """Add a line."""
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(record)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {reason(error)}") from error
        if self._tensorboard is not None:
            for name, value in record.items():
                self._tensorboard.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        """Write what TensorBoard keeps in memory."""
        if self._tensorboard is not None:
            self._tensorboard.close()


def summary_writer() -> Any:
    """Return the class that writes TensorBoard's files.

    Raises:
        ExtraError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ExtraError("TensorBoard's log needs tensorboard: pip install tensorboard") from None
    return SummaryWriter


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a log.csv: the numbers of each line by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
