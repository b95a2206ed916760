"""The yes/no judge on a GGUF file, run by llama.cpp inside this process.

llama.cpp uses four-bit weights without converting them, loads them in about a second, and caches
the prefix that prompts share, so that only the rest is computed. The Python wheel (xllamacpp) runs
its server, which listens on this machine only, with a random key.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from calibrate.common.errors import InputError, ModelError
from calibrate.common.marks import sha256_of
from calibrate.common.progress import SILENT, Progress, stage
from calibrate.models.llama_cpp import is_installed
from probes.asking import QUESTION, Answer, Asked, probability_of_yes, settled

CONTEXT = 4096  # tokens of a prompt at most
LIKELY = 500  # next tokens looked at; the others have less than about 1e-5 each
QUIET = -1  # below llama.cpp's least verbose level


@dataclass(frozen=True, eq=False)
class GgufQuestion(Asked):
    """Asks a GGUF model through llama.cpp, which loads it at the first question.

    question: has places for {text} and {concept}. context: tokens of a prompt at most.
    """

    path: str | Path
    question: str = QUESTION
    context: int = CONTEXT
    progress: Progress = SILENT

    @cached_property
    def identity(self) -> str:  # type: ignore[override]
        """The digest of the file."""
        return f"gguf {sha256_of(Path(self.path))}"

    def answers(self, prompts: Sequence[str]) -> Iterator[tuple[int, float | None]]:
        """Yield each prompt's index and P(yes), in order.

        Raises: ModelError if llama.cpp cannot load the file; InputError if a prompt is too long,
            or the model answers neither yes nor no.
        """
        each = ((index, self._answer(prompt)) for index, prompt in enumerate(prompts))
        return settled(each, Path(self.path).name)

    def _answer(self, prompt: str) -> Answer:
        request = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": LIKELY,
            "temperature": 0,
            "cache_prompt": True,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        reply = self._server.handle_chat_completions(request)
        if "error" in reply:
            raise InputError(
                f"judge {self.path} must answer a prompt of at most {self.context} tokens, got "
                f"{reply['error']['message']!r}; have shorter replies, or name another judge"
            )
        likely = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        score = probability_of_yes((one["token"], one["logprob"]) for one in likely)
        return str(likely[0]["token"]) if score is None else score

    @cached_property
    def _server(self) -> Any:
        if not is_installed():
            raise InputError(
                "asking a GGUF needs llama.cpp: pip install 'steering-calibrate[llama-cpp]'"
            )
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self.path)
        params.n_ctx, params.n_parallel = self.context, 1
        params.api_keys, params.ui = [secrets.token_hex()], False
        params.warmup, params.verbosity = False, QUIET
        for cores in (params.cpuparams, params.cpuparams_batch):
            cores.n_threads = torch.get_num_threads()
        with stage(self.progress, f"loading {Path(self.path).name}"):
            try:
                return xllamacpp.Server(params)
            except RuntimeError as error:
                raise ModelError(
                    f"llama.cpp cannot load {self.path}; it must be a GGUF model file"
                ) from error
