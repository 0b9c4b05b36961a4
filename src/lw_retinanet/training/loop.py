"""The training loop: plain torch, one process or many, and the same run however often it is interrupted."""

from collections.abc import Callable

from lw_retinanet.config import Config
from lw_retinanet.data.records import Records
from lw_retinanet.errors import RunFolderError
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training.checkpoint import load_latest, save_checkpoint
from lw_retinanet.training.distributed import World
from lw_retinanet.training.progress import training_progress
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.run_log import RunLog
from lw_retinanet.training.scores import Score
from lw_retinanet.training.step import Teacher
from lw_retinanet.training.trainer import Trainer

Evaluate = Callable[[RetinaNet, int], Score]
"""Evaluates a model after so many steps, at once or in the background."""


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
        RunFolderError: if no checkpoint of a resumed run is whole, or it has done more steps than asked for.
    """
    checkpoint = load_latest(folder.checkpoints) if resume else None
    if resume and world.is_main:
        folder.trim_log(checkpoint.step if checkpoint else 0)
    trainer = Trainer(model, records, config=config, world=world, macs_reduction=macs_reduction, teacher=teacher)
    if checkpoint:
        trainer.restore(checkpoint)
    if trainer.done > trainer.total_steps:
        raise RunFolderError(f"{folder.path} has done {trainer.done} steps, more than the {trainer.total_steps} asked for")
    batches = trainer.batches()
    with RunLog(folder, trainer) as run_log:
        # The run may have been killed while this score was being computed.
        if _score_is_due(trainer) and not folder.has_score(trainer.done):
            _score(trainer, run_log, evaluate)
        model.train()
        with training_progress(
            total_steps=trainer.total_steps, first_step=trainer.done, images_per_step=trainer.plan.images_per_step, shown=world.is_main
        ) as progress:
            for micro_batches in batches:
                run_log.add(trainer.step(micro_batches))
                is_saved, is_scored = _checkpoint_is_due(trainer), _score_is_due(trainer)
                # Scores of earlier steps are written first: a resumed run would not compute them again. They also come before this step's
                # line, so that the log ends with the last step.
                run_log.scores.write_arrived(wait_before=trainer.done if is_saved else 0)
                # The losses of a step are read while the device computes the next one.
                run_log.write_steps(progress, may_wait=0 if is_saved or is_scored else 1)
                if is_scored:
                    _score(trainer, run_log, evaluate)
                # Saved only after the evaluation has been started. If the run dies before its score is logged, the resumed run finds the
                # score missing and evaluates again.
                if is_saved and world.is_main:
                    save_checkpoint(folder.checkpoints, trainer.snapshot())
    return trainer.averaged


def _checkpoint_is_due(trainer: Trainer) -> bool:
    every = trainer.config.train.save_every or trainer.plan.steps_per_epoch
    return trainer.done % every == 0 or trainer.done == trainer.total_steps


def _score_is_due(trainer: Trainer) -> bool:
    """Whether the present weights are evaluated on the way; the caller of :func:`train` evaluates the last ones."""
    every = trainer.config.train.evaluate_every * trainer.plan.steps_per_epoch
    return bool(every) and trainer.done % every == 0 and 0 < trainer.done < trainer.total_steps


def _score(trainer: Trainer, run_log: RunLog, evaluate: Evaluate | None) -> None:
    if evaluate and trainer.world.is_main:
        run_log.scores.add(trainer.done, evaluate(trainer.averaged, trainer.done))
        trainer.model.train()  # a detector puts the model that it runs into evaluation mode; without an average it ran this one
