"""NVFP4 against FP8 mixtures of experts: what ``flashinfer-perf moe-fp4`` measures, for programs too.

    from flashinfer_perf.moe_tool.measure import bench_run
    from flashinfer_perf.moe_tool.call import moe_fp4, nvfp4_moe_quant_config

The two contestants are routines like all others, but for ``--list``, which does not know them: the same factory makes
their inputs, the same engine checks and times them, and the same sinks take their records.
"""
