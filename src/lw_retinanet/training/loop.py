"""The training loop: plain torch, one process or many, and the same run however often it is interrupted."""

import copy
import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, nullcontext
from dataclasses import replace

from lw_retinanet.config import Config
from lw_retinanet.data.records import Records
from lw_retinanet.errors import RunFolderError
from lw_retinanet.files import require_room
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.stopping import Stopped, StopRequest, stopping
from lw_retinanet.structures import Batch
from lw_retinanet.training.checkpoint import KEEP, Checkpoint, checkpoint_files, load_latest, save_checkpoint
from lw_retinanet.training.distributed import World
from lw_retinanet.training.progress import training_progress
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.run_log import KeepBest, RunLog
from lw_retinanet.training.scores import Score
from lw_retinanet.training.step import Teacher
from lw_retinanet.training.step_memory import kept_bytes
from lw_retinanet.training.trainer import Trainer

Evaluate = Callable[[RetinaNet, int], Score | None]
"""Evaluates a model after so many steps, at once or in the background. All processes call it; only the first one's answer counts."""
SCORE_SECONDS = 3.0  # that a run which was asked to end waits for a score
log = logging.getLogger(__name__)


def train(
    model: RetinaNet,
    records: Records,
    *,
    config: Config,
    folder: RunFolder,
    world: World,
    macs_reduction: float = 1.0,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    keep_best: KeepBest | None = None,
    teacher: Teacher | None = None,
) -> RetinaNet:
    """Train a model: log every step, evaluate and save checkpoints from time to time.

    Args:
        model, records, config, world, macs_reduction, teacher: As for :class:`~lw_retinanet.training.trainer.Trainer`.
        folder: Folder for log and checkpoints; only the first process writes.
        resume: Whether to go on from the newest checkpoint of the folder. Before the first one, the run starts from the weights of
            ``model``, as a new run does.
        evaluate: Called as ``evaluate(averaged_model, step)`` every ``train.evaluate_every`` epochs, but not after the last step, which the
            caller evaluates. Its numbers are logged. It may return a future and compute them meanwhile, but must not keep a reference to
            the model: training goes on to change it.
        keep_best: Called in the first process with a copy of the weights that were scored and the entry of the log, if its AP is the best.

    Returns:
        The trained model: the moving average of the weights if there is one. It has fewer steps than asked for if its AP did not rise for
        ``train.patience`` evaluations.

    Raises:
        TrainingError: if a loss or gradient is not finite.
        RunFolderError: if no checkpoint of a resumed run is whole or fits, or it has done more steps than asked for.
        DiskFullError: if there is no room for what the run will write, before the first step or when the disk is full later.
    """
    checkpoint = _checkpoint_of(folder, world) if resume else None
    trainer = Trainer(model, records, config=config, world=world, macs_reduction=macs_reduction, teacher=teacher)
    if checkpoint:
        trainer.restore(checkpoint)
    if trainer.done > trainer.total_steps:
        raise RunFolderError(f"{folder.path} has done {trainer.done} steps, more than the {trainer.total_steps} asked for")
    if world.is_main:
        _require_room(folder, trainer)
    with stopping() as stop, RunLog(folder, trainer, keep_best) as run_log, closing(trainer.batches()) as batches:
        saved = trainer.done
        try:
            # Of several processes all end after the same step, which they agree on.
            with stop.held() if world.size > 1 else nullcontext():
                if checkpoint and evaluate:
                    _make_up(checkpoint, trainer, run_log, evaluate, stop)
                _take_steps(trainer, batches, folder=folder, run_log=run_log, evaluate=evaluate, stop=stop)
        except (KeyboardInterrupt, Stopped) as end:
            if stop.number is None and not isinstance(end, Stopped):
                raise  # not by our signal handler, so perhaps in the middle of a step
            run_log.finish(SCORE_SECONDS)
            if world.is_main:
                if trainer.done > saved:
                    save_checkpoint(folder.checkpoints, _with_missed(trainer.snapshot(), run_log))
                log.warning("stopped after step %d of %d; resume goes on from there", trainer.done, trainer.total_steps)
            raise
    return trainer.averaged


def _checkpoint_of(folder: RunFolder, world: World) -> Checkpoint | None:
    """Where a run goes on; the log ends there, too."""
    checkpoint = load_latest(folder.checkpoints)
    if world.is_main:
        folder.trim_log(checkpoint.step if checkpoint else 0)
        if checkpoint is None:
            log.warning("%s has no checkpoint yet, so the run starts anew from its first step", folder.path)
    return checkpoint


def _take_steps(
    trainer: Trainer,
    batches: Generator[Sequence[Batch]],
    *,
    folder: RunFolder,
    run_log: RunLog,
    evaluate: Evaluate | None,
    stop: StopRequest,
) -> None:
    """All steps that are left. A signal is obeyed between two steps, while data is read, and while the model is evaluated."""
    world = trainer.world
    # The run may have been killed while this score was being computed.
    if _score_is_due(trainer) and not world.first(lambda: folder.has_score(trainer.done)):
        _score(trainer, run_log, evaluate, stop)
    if _has_peaked(trainer, run_log):
        return
    trainer.model.train()
    with training_progress(
        total_steps=trainer.total_steps,
        first_step=trainer.done,
        images_per_step=trainer.plan.images_per_step,
        steps_per_epoch=trainer.plan.steps_per_epoch,
        shown=world.is_main,
    ) as progress:
        for micro_batches in batches:
            with stop.held():
                run_log.add(trainer.step(micro_batches, stops=stop.number is not None))
                is_saved, is_scored = _checkpoint_is_due(trainer), _score_is_due(trainer)
                # Scores of earlier steps are written first: a resumed run would not compute them again. They also come before this
                # step's line, so that the log ends with the last step.
                run_log.scores.write_arrived(wait_before=trainer.done if is_saved else 0)
                # The losses of a step are read while the device computes the next one.
                stops = run_log.write_steps(progress, may_wait=0 if is_saved or is_scored else 1)
            if stops and world.size > 1:
                stop.obey()
            if is_scored:
                _score(trainer, run_log, evaluate, stop)
            has_peaked = is_scored and _has_peaked(trainer, run_log)
            # Saved only after the evaluation has been started. If the run dies before its score is logged, the resumed run finds the
            # score missing and evaluates again.
            if (is_saved or has_peaked) and world.is_main:
                with stop.held():
                    save_checkpoint(folder.checkpoints, trainer.snapshot())
            if has_peaked:
                return


def _require_room(folder: RunFolder, trainer: Trainer) -> None:
    """Check that the checkpoints which will lie there at one time fit on the disk, and the model after them."""
    kept = kept_bytes(trainer.model, trainer.config.train)
    left = -(-(trainer.total_steps - trainer.done) // _save_every(trainer))
    there = len(checkpoint_files(folder.checkpoints))
    most = max(0, min(there + left, KEEP + 1) - there) * kept.checkpoint  # a new one is whole before an old one goes
    settings = trainer.config.train
    models = 1 + bool(settings.evaluate_every) + (settings.keep == "best")
    last = max(0, min(there + left, KEEP) - there) * kept.checkpoint + models * kept.weights
    require_room(folder.path, max(most, last), f"the run, with the newest {KEEP} of its checkpoints,")


def _save_every(trainer: Trainer) -> int:
    return trainer.config.train.save_every or trainer.plan.steps_per_epoch


def _checkpoint_is_due(trainer: Trainer) -> bool:
    return trainer.done % _save_every(trainer) == 0 or trainer.done == trainer.total_steps


def _score_is_due(trainer: Trainer) -> bool:
    """Whether the present weights are evaluated on the way; the caller of :func:`train` evaluates the last ones."""
    every = trainer.config.train.evaluate_every * trainer.plan.steps_per_epoch
    return bool(every) and trainer.done % every == 0 and 0 < trainer.done < trainer.total_steps


def _score(trainer: Trainer, run_log: RunLog, evaluate: Evaluate | None, stop: StopRequest) -> None:
    if not evaluate:
        return
    _evaluate(trainer.averaged, trainer.done, trainer, run_log, evaluate, stop)
    trainer.model.train()  # a detector puts the model that it runs into evaluation mode; without an average it ran this one


def _evaluate(model: RetinaNet, step: int, trainer: Trainer, run_log: RunLog, evaluate: Evaluate, stop: StopRequest) -> None:
    """Score a model and remember its weights until the score is there. With ``train.patience`` the next step waits for it."""
    with stop.released():
        score = evaluate(model, step)
        if isinstance(score, Future) and trainer.config.train.patience:
            wait([score])
    if score is None:
        return
    weights = None
    if run_log.keep_best:
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    with stop.held():
        run_log.scores.add(step, score, weights)


def _has_peaked(trainer: Trainer, run_log: RunLog) -> bool:
    """Whether the AP has not risen for so many evaluations that the run ends; all processes agree. It follows from the log alone."""
    best, patience = run_log.best, trainer.config.train.patience
    ends = bool(patience) and trainer.world.first(lambda: best.since >= patience)
    if ends and trainer.world.is_main:
        log.info(
            "stopped early, after step %d of %d: the AP has not risen for %d evaluations, and was %.4f after step %d",
            *(trainer.done, trainer.total_steps, best.since, best.ap, best.step),
        )
    return ends


def _with_missed(checkpoint: Checkpoint, run_log: RunLog) -> Checkpoint:
    """The checkpoint of a run that ends before the scores of some weights have arrived, with these weights."""
    missed = [(step, weights) for step, weights in run_log.scores.missed if step < checkpoint.step]
    more = {f"missed.{step}.{name}": tensor for step, weights in missed for name, tensor in weights.items()}
    return replace(checkpoint, tensors={**checkpoint.tensors, **more})


def _make_up(checkpoint: Checkpoint, trainer: Trainer, run_log: RunLog, evaluate: Evaluate, stop: StopRequest) -> None:
    """Evaluate the weights whose scores the run that wrote the checkpoint could not wait for."""
    for step in sorted({int(name.partition(".")[0]) for name in checkpoint.part("missed")}):
        model = copy.deepcopy(trainer.averaged)
        model.load_state_dict(checkpoint.part(f"missed.{step}"))
        _evaluate(model, step, trainer, run_log, evaluate, stop)
