"""NVFP4 against FP8 mixtures of experts: ``python benchmark_cutlass_fp4_moe.py`` (``--help`` shows everything).

A launcher like ``flashinfer_benchmark.py``, and the module from which ``bench_run`` can be imported.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from flashinfer_benchmark import SOURCE, launch


def bench_run(results, model, num_experts, topk, per_act_token, per_out_ch, mkn):
    """Appends the Measurements of one shape to ``results``; see ``flashinfer_perf.moe_tool.measure.bench_run``."""
    if SOURCE not in sys.path:
        sys.path.insert(0, SOURCE)
    from flashinfer_perf.moe_tool import measure

    measure.bench_run(results, model, num_experts, topk, per_act_token, per_out_ch, mkn)


if __name__ == "__main__":
    launch("flashinfer_perf.cli.moe_fp4")
