"""What is said before the first step: the plan, and how long it will take at the speed that was measured."""

from __future__ import annotations

from colossal_llama import model
from colossal_llama.build import Run
from colossal_llama.cluster import main_rank_logger
from colossal_llama.engine import Engine


def announce(run: Run, engine: Engine) -> None:
    """Log the resolved plan, and where the run goes on if it does not begin."""
    log, config, progress = main_rank_logger(__name__), run.config, engine.progress
    count = model.num_parameters(engine.stepper.model)
    log.info(
        f"{config.plugin}, {run.cluster.world_size} process(es), {config.mixed_precision}; "
        f"{count:,} parameters on this rank"
    )
    if progress.step:
        log.info(f"going on after step {progress.step}, row {progress.num_rows_seen:,}")
