"""A run: steps, evaluations and saves."""

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Unpack

from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.conversion.tokenizers import source_tokenizer
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.errors import InputError, NumericsError
from pegasusx_ref.files.reading import as_path
from pegasusx_ref.files.writing import locking, replacing_all
from pegasusx_ref.finetuning.batches import Example, Order, digest, encode_pairs
from pegasusx_ref.finetuning.corpus import read_corpus
from pegasusx_ref.finetuning.evaluation import evaluate, rouge_scorer
from pegasusx_ref.finetuning.log import Log, summary_writer
from pegasusx_ref.finetuning.settings import Settings
from pegasusx_ref.finetuning.state import State, read_state, write_state
from pegasusx_ref.finetuning.trainer import Trainer, load_module
from pegasusx_ref.finetuning.workers import Workers
from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.summarization import check_vocabulary, task_settings
from pegasusx_ref.tokenizer import PegasusTokenizer

STATE, BEST, LAST, LOCK = "state.safetensors", "best", "last", ".lock"


class Finetuning:
    """A run in a folder. Iterate over it to train; each step yields its line of log.csv as a dictionary.

    The folder gets the checkpoints ``best`` (lowest loss of the evaluations) and ``last``, ``log.csv``, and
    ``state.safetensors``, from which the run resumes. Under torchrun, the processes share the batches of each step.

    Args:
        train: pairs to train on: a file .jsonl, .csv or .parquet.
        out: the folder, new or empty.
        model: a checkpoint folder with its tokenizer, or a name of the Hugging Face Hub.
        evaluation: pairs to evaluate on, a file likewise; None for no evaluation.
        settings: the defaults if None.
        device: see `from_pretrained`.
        resume: continue the run in the folder where it was saved last; a run that was never saved starts anew.
        tensorboard: write files of TensorBoard to the folder too.
        hub: see `HubOptions`.

    Raises:
        InputError: no good pairs, a folder that is not empty, a run with other settings, or a quantized model.
        CheckpointError: the model, its tokenizer or the state is missing or damaged.
        ExtraError: a package is missing.

    Attributes:
        settings: with defaults filled in.
        step: number of steps so far.
        saved_step: the step that a resumed run would continue from.
        padding: share of padding among the source tokens.
    """

    def __init__(
        self,
        train: str | Path,
        out: str | Path,
        model: str | Path = DEMO_CHECKPOINT,
        *,
        evaluation: str | Path | None = None,
        settings: Settings | None = None,
        device: str | int | None = None,
        resume: bool = False,
        tensorboard: bool = False,
        **hub: Unpack[HubOptions],
    ) -> None:
        self.out, settings = as_path(out), settings or Settings()
        self.workers, self._tensorboard = Workers(), tensorboard
        if not resume and os.path.lexists(self.out) and any(path.name != LOCK for path in self.out.iterdir()):
            raise InputError(f"{self.out}: is not empty: resume the run in it (--resume), or name a new folder")
        if tensorboard:
            summary_writer()  # fails before the run
        if evaluation is not None and settings.eval_summaries:
            rouge_scorer()  # fails before the run
        self.module = load_module(model, settings, self.workers.device(device), hub)
        self.tokenizer = PegasusTokenizer.from_pretrained(model, **hub)
        self._tokenizer_files = source_tokenizer(model, hub)
        config, generation = self.module.model_config, self.module.generation_config
        check_vocabulary(self.tokenizer, self.tokenizer, config)
        prefix = task_settings(config, generation or GenerationConfig.from_model_config(config))[1]
        settings = settings.with_lengths(self.module.model_config.max_position_embeddings)
        self.held_out = [] if evaluation is None else self._read(evaluation, settings, prefix)
        self.examples = self._read(train, settings, prefix)

        per_step = settings.batch_size * settings.accumulate * self.workers.count
        self._order = Order(self.examples, per_step, settings.seed)
        self.settings = settings.with_steps(self._order.steps_per_epoch)
        self.padding = self._order.padding(settings.batch_size)
        self._trainer = Trainer(self.module, self.settings, self.workers)
        self._fixed = dataclasses.asdict(self.settings) | {
            "model": str(model),
            "processes": self.workers.count,
            "checksum": digest([*self.examples, *self.held_out]),
        }
        state = State(0, None, self._fixed)
        self.saved_step = -1
        if resume and os.path.lexists(self.out / STATE):
            state = read_state(self.out / STATE, self._fixed, self.module, self._trainer.optimizer)
            self.saved_step = state.step
        self.step, self.best = state.step, state.best
        self._is_stopping, self._stops = False, False

    def _read(self, path: str | Path, settings: Settings, prefix: str) -> list[Example]:
        corpus = read_corpus(path, settings.source_column, settings.target_column)
        lengths = settings.max_source_tokens, settings.max_target_tokens
        examples, notes = encode_pairs(corpus, self.tokenizer, prefix, *lengths)
        for note in notes if self.workers.rank == 0 else []:
            warnings.warn(note, stacklevel=3)
        return examples

    @property
    def num_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.settings.steps or 0

    def stop(self) -> None:
        """End the run after the current step, with a save; for handlers of signals and other threads."""
        self._is_stopping = True

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Train until the last step, or until `stop`.

        Raises:
            InputError: another process is training in the folder.
            NumericsError: the loss or the gradient is not finite; the last save stays.
            OutputError: a file cannot be written; likewise.
        """
        with ExitStack() as stack:
            stack.callback(self.workers.close)
            self.workers.connect(self.module)
            log = None
            if self.workers.rank == 0:
                if not stack.enter_context(locking(self.out / LOCK)):
                    raise InputError(f"{self.out}: another process is training in it: wait for its end, or stop it")
                log = stack.enter_context(closing(Log(self.out, self.step, self._tensorboard)))
            if self.saved_step < 0:
                self.save()  # a folder that cannot hold the run is an error now
            while self.step < self.num_steps and not self._stops:
                record = self._advance()
                is_due = self.step % (self.settings.eval_every or 1) == 0 or self.step == self.num_steps
                if is_due and self.held_out:
                    record |= evaluate(self.module, self.tokenizer, self.held_out, self.settings, self.workers)
                if log is not None:
                    log.append(record)
                if record.get("eval_loss", math.inf) < (math.inf if self.best is None else self.best):
                    self.best = record["eval_loss"]
                    self._write_checkpoint(BEST)
                if is_due or self._stops:
                    self.save()
                yield record

    def _advance(self) -> dict[str, float]:
        """Take a step, and return its line of the log."""
        step, started = self.step + 1, time.perf_counter()
        examples = [self.examples[row] for row in self._order.rows(step)]
        try:
            loss = self._trainer.take(step, examples)
        except NumericsError as error:
            raise NumericsError(f"{error}; {self.out} keeps step {self.saved_step}") from None
        self.step = step
        self._stops = self.workers.total([self._is_stopping])[0] > 0  # in the same step on all processes
        tokens = sum(len(example.source) + len(example.labels) for example in examples)
        return {
            "step": step,
            "loss": loss,
            "learning_rate": self.settings.learning_rate_at(step),
            "tokens_per_second": round(tokens / (time.perf_counter() - started), 1),
        }

    def save(self) -> None:
        """Write ``last`` and the state; the state is written last, so that a run that is killed repeats what misses."""
        self._write_checkpoint(LAST)
        if self.workers.rank == 0:
            state = State(self.step, self.best, self._fixed)
            write_state(self.out / STATE, state, self.module, self._trainer.optimizer)
        self.saved_step = self.step

    def _write_checkpoint(self, name: str) -> None:
        if self.workers.rank == 0:
            folder = self.out / name
            with replacing_all([folder / file for file in self._tokenizer_files]) as temporaries:
                for path, content in zip(temporaries, self._tokenizer_files.values(), strict=True):
                    path.write_bytes(content)
            self.module.save_pretrained(folder)
