"""Flags of the attention family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import Since, backends_flag, flag

OPERANDS = (DType.BFLOAT16, DType.FLOAT16, DType.FP8_E4M3, DType.FP8_E5M2)


@dataclass(frozen=True)
class AttentionFlags:
    """In the order of upstream's Namespace line."""

    family: ClassVar[str] = "attention"

    backends: tuple[str, ...] = backends_flag()
    page_size: int = flag(0, minimum=0, help="Tokens in a page of the KV cache; paged attention needs it.")
    batch_size: int = flag(minimum=1, help="Number of sequences.")
    s_qo: int = flag(1, minimum=1, help="Longest query; 1 for decoding, more for speculative decoding.")
    s_kv: int = flag(minimum=1, help="Longest key-value sequence.")
    num_qo_heads: int = flag(minimum=1, help="Heads of query and output.")
    num_kv_heads: int = flag(minimum=1, help="Heads of key and value.")
    head_dim_qk: int | None = flag(None, minimum=1, help="Head dimension of query and key.")
    head_dim_vo: int | None = flag(None, minimum=1, help="Head dimension of value and output; head_dim_qk by default.")
    head_dim_ckv: int | None = flag(None, minimum=1, help="Dimension of the compressed key-value vector (MLA).")
    head_dim_kpe: int | None = flag(None, minimum=1, help="Dimension of the rotary part of the key (MLA).")
    q_dtype: DType = flag(DType.BFLOAT16, choices=OPERANDS, help="Format of the query.")
    kv_dtype: DType = flag(DType.BFLOAT16, choices=OPERANDS, help="Format of the key-value cache.")
    causal: bool = flag(False, help="Mask keys behind the query's position.")
    random_actual_seq_len: bool = flag(False, help="Random sequence lengths up to the longest, instead of that.")
    enable_pdl: bool = flag(False, since=Since.UPSTREAM_0_6_18, help="Enable programmatic dependent launch.")

    def __post_init__(self) -> None:
        if self.head_dim_vo is None:
            object.__setattr__(self, "head_dim_vo", self.head_dim_qk)

    @property
    def out_dtype(self) -> DType:
        """The query's format; bfloat16 for FP8, as the library has it."""
        return self.q_dtype if self.q_dtype.bytes > 1 else DType.BFLOAT16
