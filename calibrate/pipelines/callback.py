"""Calibrate a model while it is trained, and leave its training as it would have been.

A calibration draws and restores random numbers, reads the model in eval mode without gradients, and
touches neither optimizer nor gradients, so that losses and weights are those of a run without it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from calibrate.calibration import calibrate
from calibrate.common.errors import (
    CalibrateError,
    CalibrateWarning,
    ConceptError,
    Infeasible,
    InputError,
    NumericalError,
    of_machine,
)
from calibrate.deploy.finished import Calibration
from calibrate.models.ranks import Ranks
from calibrate.models.unreadable import first_line
from calibrate.pipelines.options import check_inputs, checked_options
from calibrate.texts.concept import Concept, read_concept

FOLDER = "steering"  # in the Trainer's output directory
GIVEN = ("model", "concept", "out", "progress")  # arguments that are not options here
LAST = "last"  # as start: each calibration begins with the one before it
ALIKE = (Infeasible, ConceptError, NumericalError)  # what all that hold one model find alike
STRATEGIES = {"save": "save_strategy", "evaluate": "eval_strategy"}

Metrics = dict[str, float]


@dataclass(frozen=True, eq=False)
class CalibratedStep:
    """What became of one calibration: the result, or the reasons why there is none.

    >>> calibrate.CalibratedStep(100, 42.0, None, ("no headroom",)).reasons
    ('no headroom',)
    """

    step: int
    seconds: float
    result: Calibration | None
    reasons: tuple[str, ...] = ()


class CalibrationCallback(TrainerCallback):  # type: ignore[misc]
    """Calibrate at every checkpoint, evaluation or so many steps of a `Trainer`.

    One artefact a calibration goes to `out`, by default `steering` in the Trainer's output
    directory. `history` holds what was found. Strength, cost, presence and how far α_B has drifted
    since the first go to the Trainer's log once it is attached, and so to TensorBoard, W&B or
    MLflow. A calibration that fails, whether no strength does what was asked or it cannot be done
    with these weights, in this memory or on this disk, is logged and warned of, and the training
    goes on; only where several processes hold a model together does it end if one of them fails
    alone. With start="last" each calibration begins with the last one that was found, which takes
    less than half the time.

    >>> callback = calibrate.CalibrationCallback(concept, every=100, **options)
    >>> callback.history
    ()
    """

    def __init__(
        self,
        concept: str | Path | Concept = "joy",
        *,
        every: str | int = "save",
        out: str | Path | None = None,
        **options: Any,
    ) -> None:
        """Check everything that can be checked before the training.

        every: "save", "evaluate", or a number of steps. options: as `calibrate.calibrate` takes
            them, such as ce_budget=0.2; start may also be "last".
        Raises: InputError for an option that does not exist, a value out of range, or a judge or a
            file that is not there; ConceptError for texts that cannot be used; ArtefactError for an
            earlier calibration that cannot be read.
        """
        self._concept, self._every = read_concept(concept), _checked_every(every)
        self._out, self._options = out, checked_options(options, "CalibrationCallback", GIVEN)
        check_inputs(self._concept, self._options)
        for earlier in (options.get("start"), options.get("beside")):
            if isinstance(earlier, str | Path) and earlier != LAST:
                Calibration.load(earlier)
        self._log: Callable[[Metrics], None] | None = None
        self._found: list[CalibratedStep] = []

    @property
    def history(self) -> tuple[CalibratedStep, ...]:
        """What was found at each step, on the process that calibrates."""
        return tuple(self._found)

    def attach(self, trainer: Trainer) -> CalibrationCallback:
        """Add the callback to a Trainer, and log through it.

        >>> from transformers import Trainer
        >>> trainer = Trainer(model, processing_class=tokenizer)
        >>> callback = calibrate.CalibrationCallback(concept).attach(trainer)
        """
        trainer.add_callback(self)
        self._log = trainer.log
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Refuse a training that would never calibrate, or whose model no process holds whole.

        Raises: InputError.
        """
        if given.get("processing_class") is None and "tokenizer" not in self._options:
            raise InputError(
                "a calibration needs the tokenizer; give the Trainer processing_class=…"
            )
        strategy = STRATEGIES.get(str(self._every))
        if strategy is not None and _value(getattr(args, strategy)) == "no":
            raise InputError(
                f"every={self._every!r} never comes, since {strategy} is 'no'; set it, or give "
                "every=N steps"
            )
        if isinstance(self._every, int) and self._every > state.max_steps:
            raise InputError(
                f"every={self._every} never comes, since the training ends after {state.max_steps} "
                "steps; give every=N of at most that"
            )
        if _is_never_whole(args):
            raise InputError(
                "the weights must be whole in one process, or sharded by FSDP 2, but FSDP 1 or "
                "DeepSpeed's ZeRO-3 shards them; take FSDP 2, or calibrate the saved checkpoints: "
                "calibrate --model DIR"
            )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Calibrate after a checkpoint, if that was asked for."""
        if self._every == "save":
            self._calibrate(args, state, control, given)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Calibrate after an evaluation, if that was asked for."""
        if self._every == "evaluate":
            self._calibrate(args, state, control, given)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Calibrate after so many steps, if that was asked for."""
        if isinstance(self._every, int) and state.global_step % self._every == 0:
            self._calibrate(args, state, control, given)

    def _calibrate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        given: dict[str, Any],
    ) -> None:
        """Calibrate on the first process, while the others wait; on all that share the model."""
        if state.is_world_process_zero or not Ranks.of(given["model"]).alone:
            found = self._step(args, state.global_step, given)
            self._found.append(found)
            self._report(state, control, self._metrics(found))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()

    def _step(self, args: TrainingArguments, step: int, given: dict[str, Any]) -> CalibratedStep:
        folder = Path(self._out or Path(str(args.output_dir)) / FOLDER) / f"step-{step}"
        options = {"tokenizer": given.get("processing_class"), **self._options}
        if options.get("start") == LAST:
            results = [found.result for found in self._found if found.result is not None]
            options["start"] = results[-1] if results else None
        started = time.perf_counter()
        try:
            result = calibrate(given["model"], self._concept, out=folder, **options)
        except Exception as error:
            if not _may_go_on(error, given["model"]):
                raise
            said = str(error) if isinstance(error, CalibrateError) else first_line(error)
            warnings.warn(
                f"no strength for {self._concept.name!r} at step {step}: {said}",
                CalibrateWarning,
                stacklevel=2,
            )
            reasons = error.reasons if isinstance(error, Infeasible) else (said,)
            return CalibratedStep(step, time.perf_counter() - started, None, reasons)
        return CalibratedStep(step, time.perf_counter() - started, result)

    def _metrics(self, found: CalibratedStep) -> Metrics:
        """What is logged of a calibration; drift: of α_B, relative to the first one found."""
        metrics = {"feasible": float(found.result is not None), "seconds": found.seconds}
        if found.result is not None:
            config = found.result.config
            at_budget = config.range.strength_at_budget.value
            first = next(one.result for one in self._found if one.result is not None)
            metrics |= {
                "alpha": config.intervention.strength,
                "alpha_B": at_budget,
                "delta_ce": config.measured.delta_ce.value,
                "presence": config.measured.presence.value,
                "presence_change": config.measured.presence.change.value,
                "drift": at_budget / first.config.range.strength_at_budget.value - 1,
            }
        return {f"{FOLDER}/{name}": value for name, value in metrics.items()}

    def _report(self, state: TrainerState, control: TrainerControl, metrics: Metrics) -> None:
        """Log through the Trainer; into its history alone where the callback is not attached."""
        if self._log is not None:
            wanted = control.should_log  # the Trainer takes its own log for written by this one
            self._log(metrics)
            control.should_log = wanted
        else:
            state.log_history.append({**metrics, "step": state.global_step})


def _checked_every(every: str | int) -> str | int:
    is_count = isinstance(every, int) and not isinstance(every, bool) and every > 0
    if every not in STRATEGIES and not is_count:
        raise InputError(
            f"every must be 'save', 'evaluate' or a number of steps above 0, got {every!r}"
        )
    return every


def _may_go_on(error: Exception, model: torch.nn.Module) -> bool:
    """Whether a training goes on after a calibration that failed; not if a program is wrong."""
    if not Ranks.of(model).alone:  # the others are still at it, and would wait for ever
        return isinstance(error, ALIKE)
    return isinstance(error, CalibrateError) or of_machine(error)


def _is_never_whole(args: TrainingArguments) -> bool:
    deepspeed, fsdp = getattr(args, "hf_deepspeed_config", None), args.fsdp_config or {}
    first = bool(args.fsdp) and str(fsdp.get("version", 2)) == "1"
    return first or (deepspeed is not None and deepspeed.is_zero3())


def _value(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))
