"""Thirty architectures against an oracle written by hand; the script measures all there are."""

from __future__ import annotations

import pytest
from sweep import sweep

pytestmark = pytest.mark.slow

EXACT = """llama gemma2 gemma3_text qwen2 qwen3 qwen3_moe mixtral gpt2 gpt_neo gpt_neox gptj bloom
    cohere2 deepseek_v3 gpt_oss granite hyperclovax llama4_text modernbert-decoder olmo2 phi3
    stablelm starcoder2""".split()
WITHOUT = {
    "lfm2": {"prefix sharing", "fast decoding", "decoding prefix"},
    "mamba": {"prefix sharing", "fast decoding", "decoding prefix"},
    "falcon_h1": {"prefix sharing", "fast decoding", "decoding prefix"},
    "minimax": {"prefix sharing", "fast decoding", "decoding prefix"},
    "mpt": {"decoding prefix"},
    "gemma4_text": {"suffix passes"},
    "rwkv": {"prefix sharing", "fast decoding", "decoding prefix", "batched generation"},
    "xlstm": {"prefix sharing", "fast decoding", "decoding prefix", "batched generation"},
    "openai-gpt": {"prefix sharing", "fast decoding", "decoding prefix", "positions last"},
}


@pytest.mark.parametrize("architecture", [*EXACT, "opt (projections)", "falcon (ALiBi)"])
def test_it_is_measured_as_the_oracle_does_with_every_shortcut(architecture):
    found = sweep(architecture)
    assert (found.verdict, found.fallbacks, found.reason) == ("exact", {}, ""), found


@pytest.mark.parametrize("architecture", WITHOUT)
def test_it_is_measured_as_the_oracle_does_without_what_it_cannot_do(architecture):
    found = sweep(architecture)
    assert (found.verdict, set(found.fallbacks)) == ("fall-back", WITHOUT[architecture]), found
    assert all(found.fallbacks.values())


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("gemma3n_text", "one residual stream, (1, 4, 32) for 4 tokens, and block 0 of"),
        ("cpmant", "puts out (1, 36, 32)"),
    ],
)
def test_what_cannot_be_steered_is_refused_with_the_reason(architecture, said):
    found = sweep(architecture)
    assert found.verdict == "refused"
    assert said in found.reason
