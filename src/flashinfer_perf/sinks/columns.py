"""The columns of the CSV. The first two blocks are upstream's, by hand and in its order; the rest is derived."""

from __future__ import annotations

from collections.abc import Mapping

from flashinfer_perf.core.flags import specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import GENERAL_FACTS, Routine


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


UPSTREAM_0_6_2 = _words("""
    routine median_time std_time tflops tb_per_sec backend
    s_qo s_kv head_dim_qk head_dim_vo head_dim_ckv head_dim_kpe causal q_dtype kv_dtype avg_actual_seq_len
    random_actual_seq_len
    n group_size tile_size scale_major_mode mma_sm use_128x4_sf_layout use_nvfp4
    num_tokens intermediate_size num_experts top_k n_group topk_group routed_scaling_factor local_expert_offset
    local_num_experts routing_method use_shuffled_weight weight_layout use_routing_bias use_routing_scales_on_input
    weight_dtype gated_act cutlass_variant quantized_input tp_size tp_rank ep_size ep_rank
    max_num_tokens
    num_heads scale eps use_global_scale
    alignment global_scale sf_layout do_shuffle sf_vec_size
    vocab_size top_p min_p temperature num_speculate_tokens filter_apply_order max_len num_rows
    seq_len head_dim rotary_dim no_rope_dim rope_theta rope_scale interleave kv_layout
    batch_size hidden_size input_dtype out_dtype quant_dtype m k num_qo_heads num_kv_heads page_size enable_pdl
    is_sf_swizzled_layout refcheck no_cuda_graph use_cupti allow_output_mismatch random_seed case_tag
    generate_repro_command repro_command
""")
"""The 92 distinct names of the 97 in upstream 0.6.2's header, each where it first stands."""

UPSTREAM_0_6_18 = _words("""
    resolved_backend is_var_seq cute_dsl_impl bias activation_type fp4_mode cold_l2_cache
    ar_backend pattern layout_code
    local_bs op_name mode_name local_tp_size local_dp_size inter_tp_size inter_dp_size
    dit_mode ppf pph ppw
    max_seq_len
    nheads dim dstate ngroups cache_steps state_dtype has_z dt_softplus
    num_q_heads num_k_heads num_v_heads head_size state_layout pool_mode update_state use_qk_l2norm
    kda_variant kda_variant_policy sm_count packed has_initial_state
    topk max_k_tiles total_q total_kv
""")
"""Names that 0.6.18 added, in its order."""

RESULTS = _words("""
    status check reason timer in_graph gate timer_fallback_reason cache_policy samples calls_per_sample dry_runs tick
    min p05 p95 mean ci_low ci_high outliers stop_reason phase phases ranks rank_min rank_median rank_max rank_skew
    busy kernels kernel_names overhead_subtracted voided_samples
    max_abs_error relative_l2_error cosine differing_elements
    flops bytes ignored_flags
    gpu compute_capability driver_version cuda_version torch_version flashinfer_version flashinfer_perf_version
    python_version platform cpu timestamp origin case_id method_id schema_version
""")
"""Ours, about each result. Times are in milliseconds, as upstream's ``median_time`` is."""

NOT_IN_CSV = ("routine", "verbose")
"""General options that say nothing about a result, or have a column already; those of the run are left out, too."""


def columns_of(routines: Mapping[str, Routine]) -> tuple[str, ...]:
    """Every column: upstream's, then every general option, flag and fact that it has none for, then the results."""
    options = [name for name, spec in specs_of(Options).items() if not spec.per_process and name not in NOT_IN_CSV]
    flags = [name for routine in routines.values() for name, spec in specs_of(routine.flags).items() if spec.identity]
    facts = [fact.name for routine in routines.values() for fact in routine.facts]
    general = [fact.name for fact in GENERAL_FACTS]
    return tuple(dict.fromkeys([*UPSTREAM_0_6_2, *UPSTREAM_0_6_18, *options, *flags, *RESULTS, *general, *facts]))
