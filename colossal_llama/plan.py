"""Plan before you book: the command line of a run and a cluster come in; what fits, hours, price, checkpoints go out.

`python -m colossal_llama.plan --cluster "64 x A800-80G"` and the flags of train.py. docs/plan.md says what each figure
rests on. Exit code 0 also where nothing fits: the verdict, or `fits` of --json, says so.
"""

from __future__ import annotations

import json
import sys

from colossal_llama.planning.plan_config import PlanConfig
from tokenizer_tools.command import command


@command(PlanConfig, flags_follow_file=True)
def main(config: PlanConfig) -> None:
    """Print the plan."""
    from colossal_llama.planning.run_needs import run_needs

    needs = run_needs(config)
    if config.json:
        from colossal_llama.planning.as_json import as_json

        print(json.dumps(as_json(needs), ensure_ascii=False))
    else:
        from colossal_llama.planning.report import print_plan

        print_plan(needs)


if __name__ == "__main__":
    sys.exit(main())
