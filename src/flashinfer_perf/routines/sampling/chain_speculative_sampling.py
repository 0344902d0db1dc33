"""Accepts or rejects the tokens that a draft model proposed, and draws the one after them."""

from __future__ import annotations

from flashinfer_perf.checks.speculative import AcceptedCount, ChainTokens, EmittedCount
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.sampling import backends, eager, inputs, launches, reference, work
from flashinfer_perf.routines.sampling.flags import SamplingFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown

TOKENS, ACCEPTED, EMITTED = reference.CHAIN_OUTPUTS


@routine(
    "chain_speculative_sampling",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "num_speculate_tokens", "input_distribution"),
)
def chain_speculative_sampling(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Chain speculative sampling for speculative decoding."""
    tensors = chains(case, make)
    shapes = tuple(Shown(f"{name}.shape", tensor.shape) for name, tensor in tensors.items())
    return Problem(
        tensors=tensors,
        reference=reference.chains,
        work=work.speculate(case, float(reference.acceptance(**tensors).prod(dim=-1).sum())),
        checks={TOKENS: ChainTokens(), ACCEPTED: AcceptedCount(TOKENS), EMITTED: EmittedCount(TOKENS)},
        ranks=make.ranks,
        shown=(*shapes, Shown("num_speculate_tokens", case.num_speculate_tokens)),
    )


def chains(case: SamplingFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """Draft and target probabilities, unlike each other, and draft tokens drawn evenly as upstream draws them."""
    batch, length, vocabulary = case.batch_size, case.num_speculate_tokens, case.vocab_size
    draft = inputs.probabilities(make, (batch, length, vocabulary), case.input_distribution, "draft_probs")
    generator = make.generator("draft_token_ids")
    ids = torch.randint(vocabulary, (batch, length), dtype=torch.int32, generator=generator).to(make.device)
    target = inputs.probabilities(make, (batch, length + 1, vocabulary), case.input_distribution, "target_probs")
    return {"draft_probs": draft, "draft_token_ids": ids, "target_probs": target}


@chain_speculative_sampling.backend("cuda", requires=backends.CHAIN_NEEDS, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's kernel, after it has filled both counts with zeros."""
    return launches.sampler(flashinfer.sampling.chain_speculative_sampling, problem, reference.CHAIN_OUTPUTS)


@chain_speculative_sampling.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """Comparisons with random numbers, then the largest of residual probability / exponential noise."""
    return launches.eager_sampler(eager.speculate, problem, reference.CHAIN_OUTPUTS)
