"""How much memory and arithmetic a stage takes, without weights: its step is run on tensors without content."""

from mmexp.sizing.advice import Advice, advise, options_for
from mmexp.sizing.batch import synthetic_batch
from mmexp.sizing.flops import Arithmetic, arithmetic_of
from mmexp.sizing.gpus import GPUS, Gpu, gpu_named
from mmexp.sizing.memory import PartSize, Size, size_stage, trace_stage
from mmexp.sizing.setup import Setup
from mmexp.sizing.trace import Trace, trace_step
from mmexp.sizing.workload import Workload, workload_of

__all__ = [
    "GPUS",
    "Advice",
    "Arithmetic",
    "Gpu",
    "PartSize",
    "Setup",
    "Size",
    "Trace",
    "Workload",
    "advise",
    "arithmetic_of",
    "gpu_named",
    "options_for",
    "size_stage",
    "synthetic_batch",
    "trace_stage",
    "trace_step",
    "workload_of",
]
