from __future__ import annotations

import pytest

from flashinfer_perf.core.flags import specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.record import Record
from flashinfer_perf.core.routine import GENERAL_FACTS, Fact
from flashinfer_perf.routines import all_routines
from flashinfer_perf.sinks.columns import NOT_IN_CSV, RESULTS, UPSTREAM_0_6_2, UPSTREAM_0_6_18, columns_of
from flashinfer_perf.sinks.row import row_of
from flashinfer_perf.timing.rank_times import RANK_FACTS
from tests.fakes import fake_routine

HEADER_0_6_2 = {
    "perf": "routine median_time std_time tflops tb_per_sec backend",
    "attention": "s_qo s_kv head_dim_qk head_dim_vo head_dim_ckv head_dim_kpe causal q_dtype kv_dtype "
    "avg_actual_seq_len random_actual_seq_len",
    "gemm": "n group_size tile_size scale_major_mode mma_sm use_128x4_sf_layout use_nvfp4",
    "moe": "num_tokens intermediate_size num_experts top_k n_group topk_group routed_scaling_factor "
    "local_expert_offset local_num_experts routing_method use_shuffled_weight weight_layout use_routing_bias "
    "use_routing_scales_on_input weight_dtype gated_act cutlass_variant quantized_input tp_size tp_rank ep_size "
    "ep_rank",
    "moe_comm": "num_tokens num_experts top_k ep_size max_num_tokens",
    "norm": "num_heads scale eps use_global_scale",
    "quantization": "alignment global_scale sf_layout do_shuffle sf_vec_size",
    "sampling": "vocab_size top_k top_p min_p temperature num_speculate_tokens filter_apply_order max_len num_rows",
    "rope": "seq_len head_dim rotary_dim no_rope_dim rope_theta rope_scale interleave kv_layout",
    "general": "batch_size hidden_size input_dtype out_dtype quant_dtype m k num_qo_heads num_kv_heads page_size "
    "enable_pdl is_sf_swizzled_layout refcheck no_cuda_graph use_cupti allow_output_mismatch random_seed case_tag "
    "generate_repro_command repro_command",
}
"""Upstream's header, block by block, with its repetitions (docs of 0.6.2)."""

ADDED_0_6_18 = (
    "resolved_backend is_var_seq cute_dsl_impl bias activation_type fp4_mode cold_l2_cache ar_backend pattern "
    "layout_code local_bs op_name mode_name local_tp_size local_dp_size inter_tp_size inter_dp_size dit_mode ppf pph "
    "ppw max_seq_len nheads dim dstate ngroups cache_steps state_dtype has_z dt_softplus num_q_heads num_k_heads "
    "num_v_heads head_size state_layout pool_mode update_state use_qk_l2norm kda_variant kda_variant_policy sm_count "
    "packed has_initial_state topk max_k_tiles total_q total_kv"
)


@pytest.fixture(scope="module")
def columns() -> tuple[str, ...]:
    return columns_of(all_routines())


def test_upstreams_header_has_97_names_of_which_92_are_distinct():
    names = " ".join(HEADER_0_6_2.values()).split()
    assert (len(names), len(set(names))) == (97, 92)


def test_the_first_columns_are_upstreams_in_order_each_where_it_first_stands(columns: tuple[str, ...]):
    distinct = tuple(dict.fromkeys(" ".join(HEADER_0_6_2.values()).split()))
    assert columns[:92] == UPSTREAM_0_6_2 == distinct


def test_then_come_the_ones_that_0_6_18_added(columns: tuple[str, ...]):
    """138 distinct names, of which one (gated_act) replaces an older one."""
    assert columns[92:139] == UPSTREAM_0_6_18 == tuple(ADDED_0_6_18.split())
    assert len({*UPSTREAM_0_6_2, *UPSTREAM_0_6_18} - {"gated_act"}) == 138


def test_no_column_is_there_twice(columns: tuple[str, ...]):
    assert len(set(columns)) == len(columns)
    assert len(set(RESULTS)) == len(RESULTS)


@pytest.mark.parametrize("name", all_routines())
def test_every_flag_and_every_fact_of_a_routine_has_a_column(name: str, columns: tuple[str, ...]):
    routine = all_routines()[name]
    flags = {flag for flag, spec in specs_of(routine.flags).items() if spec.identity}
    facts = {fact.name for fact in (*GENERAL_FACTS, *routine.facts)}
    assert (flags | facts) - set(columns) == set()


def test_every_general_option_has_a_column_or_says_nothing_about_a_result(columns: tuple[str, ...]):
    of_the_run = {name for name, spec in specs_of(Options).items() if spec.per_process}
    assert set(specs_of(Options)) - set(columns) == (set(NOT_IN_CSV) | of_the_run) - {"routine"}


def test_every_value_of_a_row_has_a_column():
    """On the other side, what a record says would be lost on the way."""
    with fake_routine() as fake:
        fake.add("torch")
        record: Record = fake.record("--refcheck")
        keys = set(row_of(record))
        columns = columns_of({"fake": fake.routine})
    assert record.measurement is not None
    assert keys - set(columns) == {"verbose"}


def test_every_result_is_in_a_row_or_from_another_clock():
    with fake_routine() as fake:
        fake.add("torch")
        keys = set(row_of(fake.record("--refcheck")))
    other_clocks = {"in_graph", "gate", "busy", "kernels", "kernel_names", "overhead_subtracted", "voided_samples"}
    assert set(RESULTS) - keys == other_clocks | set(RANK_FACTS)


def test_a_new_routine_brings_its_columns_along():
    with fake_routine(facts=(Fact("fake_fact", "x"),)) as fake:
        columns = columns_of({"fake": fake.routine})
    assert {"rows", "columns", "unread", "fake_fact"} <= set(columns)
    assert "backends" not in columns
    assert columns[:139] == (*UPSTREAM_0_6_2, *UPSTREAM_0_6_18)
