"""The training loop: plain torch, one process or many, and the same run however often it is interrupted."""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext

from lw_retinanet.config import Config
from lw_retinanet.data.records import Records
from lw_retinanet.errors import RunFolderError
from lw_retinanet.files import require_room
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.stopping import Stopped, StopRequest, stopping
from lw_retinanet.structures import Batch
from lw_retinanet.training.checkpoint import KEEP, checkpoint_files, load_latest, save_checkpoint
from lw_retinanet.training.distributed import World
from lw_retinanet.training.progress import training_progress
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.run_log import RunLog
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

    Returns:
        The trained model: the moving average of the weights if there is one.

    Raises:
        TrainingError: if a loss or gradient is not finite.
        RunFolderError: if no checkpoint of a resumed run is whole or fits, or it has done more steps than asked for.
        DiskFullError: if there is no room for what the run will write, before the first step or when the disk is full later.
    """
    checkpoint = load_latest(folder.checkpoints) if resume else None
    if resume and world.is_main:
        folder.trim_log(checkpoint.step if checkpoint else 0)
    trainer = Trainer(model, records, config=config, world=world, macs_reduction=macs_reduction, teacher=teacher)
    if checkpoint:
        trainer.restore(checkpoint)
    if trainer.done > trainer.total_steps:
        raise RunFolderError(f"{folder.path} has done {trainer.done} steps, more than the {trainer.total_steps} asked for")
    if world.is_main:
        _require_room(folder, trainer)
    with stopping() as stop, RunLog(folder, trainer) as run_log, closing(trainer.batches()) as batches:
        saved = trainer.done
        try:
            # Of several processes all end after the same step, which they agree on.
            with stop.held() if world.size > 1 else nullcontext():
                _take_steps(trainer, batches, folder=folder, run_log=run_log, evaluate=evaluate, stop=stop)
        except (KeyboardInterrupt, Stopped) as end:
            if stop.number is None and not isinstance(end, Stopped):
                raise  # not by our signal handler, so perhaps in the middle of a step
            run_log.finish(SCORE_SECONDS)
            if world.is_main and trainer.done > saved:
                save_checkpoint(folder.checkpoints, trainer.snapshot())
            if world.is_main:
                log.warning("stopped after step %d of %d; resume goes on from there", trainer.done, trainer.total_steps)
            raise
    return trainer.averaged


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
    trainer.model.train()
    with training_progress(
        total_steps=trainer.total_steps, first_step=trainer.done, images_per_step=trainer.plan.images_per_step, shown=world.is_main
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
            # Saved only after the evaluation has been started. If the run dies before its score is logged, the resumed run finds the
            # score missing and evaluates again.
            if is_saved and world.is_main:
                with stop.held():
                    save_checkpoint(folder.checkpoints, trainer.snapshot())


def _require_room(folder: RunFolder, trainer: Trainer) -> None:
    """Check that the checkpoints which will lie there at one time fit on the disk, and the model after them."""
    kept = kept_bytes(trainer.model, trainer.config.train)
    left = -(-(trainer.total_steps - trainer.done) // _save_every(trainer))
    there = len(checkpoint_files(folder.checkpoints))
    most = max(0, min(there + left, KEEP + 1) - there) * kept.checkpoint  # a new one is whole before an old one goes
    last = max(0, min(there + left, KEEP) - there) * kept.checkpoint + kept.weights
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
    with stop.released():
        score = evaluate(trainer.averaged, trainer.done)
    if score is not None:
        run_log.scores.add(trainer.done, score)
    trainer.model.train()  # a detector puts the model that it runs into evaluation mode; without an average it ran this one
