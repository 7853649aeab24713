"""Many runs from one command: the grid, its directory, the schedule, what a terminal shows, going on after a stop."""

from mmexp.sweep.command import run_sweep
from mmexp.sweep.plan import Planner, Step, plan_stage, plan_train
from mmexp.sweep.record import Job, SweepRecord, load_record

__all__ = ["Job", "Planner", "Step", "SweepRecord", "load_record", "plan_stage", "plan_train", "run_sweep"]
