"""Measure which exports are exact for which architecture, and write docs/exports.md.

    python scripts/measure_exports.py [--artefact DIR] [--page]

Every architecture is a random model of three blocks with random biases; every format is written,
loaded back as its consumer does, and compared with the reference. Then a config of joy on smollm2,
by `--layer search` or from DIR, is served by transformers, by llama.cpp with the quantised weights
the model came from, and folded: ΔCE and presence in each. Twenty minutes on two cores; what was
measured is kept.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from markdown_tables import DOCS, table
from records import page_option, read_records, sentences, write_records

from calibrate import Calibration, calibrate, load_model
from calibrate.artefact.config import SteeringConfig
from calibrate.common.errors import ExportRefused
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Sampling
from calibrate.deploy.corpora import budget_corpus
from calibrate.deploy.export import FORMATS, export
from calibrate.deploy.export.control_vector import read_directions
from calibrate.deploy.runtimes import Stack, rise_in, serving
from calibrate.engine.generation import sample
from calibrate.engine.sampling import draw, noise_key
from calibrate.models.embedded import embedded_gguf
from calibrate.models.llama_cpp import LlamaCpp
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.texts.concept import Concept
from probes import Reader

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "deploy"))
import test_export
import tiny

TARGET = DOCS / "exports.json"
MODEL, CONCEPT = "smollm2", "joy"
Sampler = Callable[[Sequence[int], int], int]


@click.command()
@click.option("--artefact", type=click.Path(exists=True, path_type=Path))
@page_option
def main(artefact: Path | None, only_page: bool) -> None:
    found: dict[str, Any] = read_records(TARGET)
    for key, measure in (("architectures", architectures), ("stacks", lambda: stacks(artefact))):
        if not only_page and key not in found:
            found = write_records(TARGET, {**found, key: measure()})
    (DOCS / "exports.md").write_text(page(found), encoding="utf-8")


def architectures() -> dict[str, dict[str, str]]:
    """By architecture and format: the gap to the reference, or why it is refused."""
    base = small_config()
    names = [*tiny.CONFIGS, *test_export.MORE]
    rows: dict[str, dict[str, str]] = {}
    for name in names:
        if name == "gpt2-1-layer":
            continue
        tiny.CONFIGS.update({name: test_export.MORE[name]} if name in test_export.MORE else {})
        loaded = test_export.randomised(tiny.model(name))
        config = test_export.config_for(base, loaded)
        rows[name] = {fmt: outcome(config, fmt, loaded) for fmt in FORMATS}
    return rows


def small_config() -> SteeringConfig:
    """Any config, to be given other vectors and references."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text("\n".join(tiny.prompts(100)))
        concept: Concept = tiny.concept(60)
        return calibrate(
            tiny.model("gpt2"), concept, tokenizer=tiny.tokenizer(), prompts=prompts,
            ce_budget=0.4, sampling=Sampling(1.0, 1.0, 12),
        ).config  # fmt: skip


def outcome(config: SteeringConfig, fmt: str, loaded: LoadedModel) -> str:
    with tempfile.TemporaryDirectory() as folder:
        suffix = {"lm-eval": "x.pt"}.get(fmt, "x")
        try:
            return f"{export(config, fmt, Path(folder) / suffix, loaded).gap:.0e}"
        except ExportRefused as refused:
            return f"refused: {refused}"


def stacks(artefact: Path | None) -> dict[str, dict[str, Any]]:
    """ΔCE and presence of one config in three stacks."""
    loaded = load_model(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        given = Calibration.load(artefact) if artefact else None
        result = given or calibrate(loaded, CONCEPT, layer="search")
        found = {
            "transformers, float32": in_transformers(result),
            "llama.cpp, Q4_1": in_llama_cpp(result, loaded, Path(folder) / "v.gguf"),
            "folded, transformers": in_folded(result, loaded),
        }
    return {name: {"where": result.config.where, **one} for name, one in found.items()}


def in_transformers(result: Calibration) -> dict[str, Any]:
    measured = result.config.measured
    rise, presence = measured.delta_ce, measured.presence
    return {
        "delta_ce": [rise.value, rise.low, rise.high, rise.upper],
        "presence": [presence.value, presence.low, presence.high],
        "baseline": presence.baseline,
    }


def in_llama_cpp(result: Calibration, loaded: LoadedModel, vector: Path) -> dict[str, Any]:
    config = result.config
    with preserving_model_state(loaded):
        export(config, "gguf", vector, loaded)
        corpus = budget_corpus(config, result.evidence, loaded)
    directions = read_directions(vector)
    asked = max(len(encode_prompt(loaded, text).ids) for text in verify_prompts(result))
    longest = asked + config.settings.sampling.max_new_tokens
    with LlamaCpp(embedded_gguf(MODEL), longest) as engine:

        def logits(steering: Any, ids: Sequence[int], after: int = 0) -> np.ndarray:
            engine.steer(steering)
            return engine.logits(ids, after)

        stack = Stack(
            "llama.cpp", lambda ids: logits(None, ids), lambda ids: logits(directions, ids)
        )
        rise = rise_in(stack, corpus)
        texts = [replies(result, loaded, partial(logits, how)) for how in (directions, None)]
    return measured(result, loaded, rise, texts)


def in_folded(result: Calibration, loaded: LoadedModel) -> dict[str, Any]:
    with preserving_model_state(loaded):
        corpus = budget_corpus(result.config, result.evidence, loaded)
    longest = max(len(sequence.ids) for sequence in corpus.sequences)
    with serving("folded", result.config, loaded, longest) as stack:
        rise = rise_in(stack, corpus)
    with tempfile.TemporaryDirectory() as folder:
        result.export("folded", folder, loaded)
        folded = load_model(folder, dtype=result.config.model.dtype)
        settings = result.config.provenance.settings
        texts = []
        for model in (folded, loaded):
            prompts = [encode_prompt(model, text) for text in verify_prompts(result)]
            with preserving_model_state(model):
                drawn = sample(model, prompts, Sampling(**settings["sampling"]), settings["seed"])
            texts.append([one.text for one in drawn])
    return measured(result, loaded, rise, texts)


def verify_prompts(result: Calibration) -> list[str]:
    return list(result.evidence.splits.prompts["verify"])


def replies(
    result: Calibration, loaded: LoadedModel, run: Callable[[Sequence[int], int], np.ndarray]
) -> list[str]:
    """A reply to every verification prompt, with the noise of the calibration's own."""
    settings = result.config.provenance.settings
    sampling, seed = Sampling(**settings["sampling"]), settings["seed"]
    ends = {loaded.tokenizer.eos_token_id}
    said = []
    for text in verify_prompts(result):
        ids = list(encode_prompt(loaded, text).ids)
        key, start = torch.tensor([noise_key(seed, text, 0)]), len(ids)
        found = run(ids, 0)[-1]
        for step in range(sampling.max_new_tokens):
            token = int(draw(torch.from_numpy(found)[None], sampling, key, step))
            ids.append(token)
            if token in ends:
                break
            found = run([token], len(ids) - 1)[-1]
        said.append(loaded.tokenizer.decode(ids[start:], skip_special_tokens=True).strip())
    return said


def measured(
    result: Calibration, loaded: LoadedModel, rise: RatioEstimate, texts: list[list[str]]
) -> dict[str, Any]:
    assert result.probe is not None
    reader = Reader(result.probe.on(loaded), CONCEPT, "probe")
    steered, plain = (
        RatioEstimate(scores, np.ones(len(scores))) for scores in map(reader.read, texts)
    )
    return {
        "delta_ce": [rise.value, *rise.interval(0.95), rise.upper(0.95)],
        "presence": [steered.value, *steered.interval(0.95)],
        "baseline": plain.value,
    }


HEADER = """# Exports

Written by `scripts/measure_exports.py`; every point is in [exports.json](exports.json).

| format | what it is | 1.0 is | who loads it |
|---|---|---|---|
| gguf | a llama.cpp control vector, F32, with keys that describe it | the calibrated strength | llama.cpp, repeng |
| peft | a LoRA adapter that is a bias and nothing else | – | PEFT |
| folded | a checkpoint with the bias in its weights | – | transformers, vLLM, whatever serves the architecture, [where it can be written](#architecture--format) |
| easysteer | the control vector and a steering spec | the calibrated strength | EasySteer (vLLM) |
| lm-eval | a `.pt` of plain values for `--model steered` | – | lm-evaluation-harness |
| svec | JSON directions, under the block that each enters | the calibrated strength | activation-steering, CAST of AISteer360 |
| snippet | code, and the vector | – | transformers, nnsight, TransformerLens |

**What fits where.** Llama, Qwen2, GPT-2, Phi, Falcon and their like have a bias to put α·v into, so
that a folded checkpoint runs in any stock engine. Mistral, Qwen3, Gemma and Mixtral have none: in
vLLM only EasySteer steers them; in llama.cpp the control vector steers all.

An export that cannot express a calibration is refused. Every other is loaded back before it is put
where it was asked for, and must reproduce the reference log-probabilities of the config, and their
shift by the steering. Who loads it back:

| format | loaded back by |
|---|---|
| peft, folded | PEFT and stock transformers themselves |
| snippet | its own code, which is run; in nnsight and TransformerLens by tests where they are installed |
| gguf, lm-eval | this project, by the rules of the format's source; by tests llama.cpp and, where it is installed, lm-evaluation-harness |
| easysteer, svec | this project, by the rules of the format's source, and nobody else |

**No export has run in vLLM here**, which needs a GPU, and AISteer360 and activation-steering are not
on PyPI: of easysteer and svec, "exact" below says that the file is right by those rules.

An export replaces an earlier export of ours, and nothing else. A file says in its own format who
wrote it: a key of the GGUF, a key of the JSON, the comment of the `.pt` archive, each with a digest
of the rest. A directory has `.steering-calibrate.json`, which lists its files with their digests; it
has to be new, empty, or hold just these. Anything else is refused before a model is loaded, and so
are the working and home directories, those above them, and the directory that is exported. An
export that fails or is interrupted leaves what was there, and the model in memory, as they were.

Files name the model so that it is found from any folder: a hub id as it is, a directory by its full
path, an embedded model or a `.gguf` by its directory in the user cache. A snippet, an adapter and
the harness' command load a model of the Hub at the commit of the calibration. Of a model that is only
in memory the export says what to fill in. Adapters that the model carries are merged into a folded
checkpoint; the peft format refuses such a model. What `calibrate push` puts into a repository names no
place on the machine it was written on: the model goes by its hub id, if it has one, and EasySteer's
spec finds its vector where EasySteer is started in the folder of both.

A calibration rests on how prompts were rendered. A folded checkpoint has the chat template's
variables set at the head of its template, before what a request gives, and the date of the
calibration in it; a snippet gives both. The other formats leave the template to the engine:
`calibrate export` and the model card say what it must be given, such as `chat_template_kwargs` in a
request to vLLM or `--chat-template-kwargs` of `llama-server`.
"""  # noqa: E501


def page(found: dict[str, Any]) -> str:
    return "\n".join([HEADER, architecture_table(found["architectures"]), stack_table(found)])


def architecture_table(rows: dict[str, dict[str, str]]) -> str:
    reasons: list[str] = []

    def shown(outcome: str) -> str:
        if not outcome.startswith("refused"):
            return f"exact, {outcome}"
        reason = why(outcome)
        if reason not in reasons:
            reasons.append(reason)
        return f"refused ({reasons.index(reason) + 1})"

    body = [[name, *(shown(one) for one in row.values())] for name, row in rows.items()]
    notes = "\n".join(f"{n}. {reason}" for n, reason in enumerate(reasons, start=1))
    return (
        "## Architecture × format\n\nRandom models, three blocks, steered after the second; the "
        "number is the largest difference of log-probabilities from the reference, where the "
        "steering itself makes some tenths.\n\n"
        + table(["architecture", *FORMATS], body)
        + f"\n{notes}\n"
    )


def why(outcome: str) -> str:
    for part in ("a norm stands", "experts are chosen", "architecture has none"):
        if part in outcome:
            return {
                "a norm stands": "a norm stands between the block's projections and the residual "
                "stream, so that no bias of theirs is α·v after it",
                "experts are chosen": "a mixture of experts: none of them writes for every token",
                "architecture has none": "the stock architecture has no such bias, and no flag "
                "that gives it one",
            }[part]
    return outcome.removeprefix("refused: ")


def stack_table(found: dict[str, Any]) -> str:
    rows, stacks = [], found["stacks"]
    (where,) = {one["where"] for one in stacks.values()}
    for name, one in stacks.items():
        value, low, high, upper = one["delta_ce"]
        presence, p_low, p_high = one["presence"]
        rows.append(
            [name, f"{value:.4f} ({low:.4f} to {high:.4f})", f"{upper:.4f}",
             "holds" if upper <= 0.1 else "**does not hold**",
             f"{presence:.3f} ({p_low:.3f} to {p_high:.3f})", f"{one['baseline']:.3f}"]
        )  # fmt: skip
    headings = ["stack", "ΔCE", "bound", "budget of 0.1", "presence", "unsteered"]
    return (
        f"## {CONCEPT} on {MODEL}, in three stacks\n\nΔCE of each stack's steered from its own "
        "unsteered predictions on the replies the config was verified on; presence in replies "
        "sampled in that stack to the same prompts with the same noise (two to a prompt in the "
        "first row, one in the others). llama.cpp runs the quantised weights the model came from, "
        "its activations rounded to eight bits, which moves predictions by some hundredths "
        f"before anything is steered. Steered at {where}. {sentences(stacks, 'note')}\n\n"
        + table(headings, rows)
    )


if __name__ == "__main__":
    main()
