"""Train the two small GPT-2s the tests run on, and write them and their texts to tests/trained/.

    python scripts/train_tiny_gpt.py

Characters are the tokens, the built-in concept packs are the text, and a third of the passages
are shouted: IN CAPITALS. So the models know one concept well, uppercase words, the one the paper
steers its own small GPT with (arXiv:2602.02712, Figure A.4). Minutes on two cores.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from calibrate.texts.concept import built_in_concepts, read_concept, read_prompts

TARGET = Path(__file__).parents[1] / "tests" / "trained"
UNKNOWN, START = "?", "<s>"
CONTEXT, WIDTH, HEADS = 192, 96, 4
BATCH, STEPS, PEAK_RATE = 32, 1200, 4e-3
SHOUTED = 1 / 3
CONCEPT_TEXTS, CONCEPT_CHARACTERS = 60, 100


@click.command()
@click.option("--steps", default=STEPS, show_default=True)
def main(steps: int) -> None:
    passages = sorted(set(texts()))
    tokenizer = character_tokenizer(passages)
    for layers in (1, 2):
        model = trained(layers, passages, tokenizer, steps)
        directory = TARGET / f"gpt2-{layers}layer"
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    (TARGET / "uppercase-words.jsonl").write_text(concept())
    (TARGET / "prompts.txt").write_text("".join(f"{plain(one)}\n" for one in read_prompts()))


def concept() -> str:
    """Passages in capitals or not, as a concept file: alike in everything else."""
    passages = [
        plain(text.text)[:CONCEPT_CHARACTERS]
        for text in read_concept("joy").texts.negatives[:CONCEPT_TEXTS]
    ]
    rows = [{"label": "positive", "text": text.upper()} for text in passages]
    rows += [{"label": "negative", "text": text} for text in passages]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def texts() -> Iterator[str]:
    yield from read_prompts()
    for name in built_in_concepts():
        both = read_concept(name).texts
        for text in (*both.positives, *both.negatives):
            asked = [plain(text.prompt)] if text.prompt else []
            yield "\n".join([*asked, plain(text.text)])  # as base models are prompted


def plain(text: str) -> str:
    """Lowercase ASCII on one line."""
    return " ".join(text.lower().encode("ascii", "ignore").decode().split())


def character_tokenizer(passages: list[str]) -> PreTrainedTokenizerFast:
    characters = sorted({c for text in passages for c in text + text.upper()} | {UNKNOWN})
    vocabulary = {character: index for index, character in enumerate([START, *characters])}
    characters_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    characters_only.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters_only,
        bos_token=START,
        eos_token=START,
        pad_token=START,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
    )


def trained(
    layers: int, passages: list[str], tokenizer: PreTrainedTokenizerFast, steps: int
) -> GPT2LMHeadModel:
    torch.manual_seed(layers)
    rng = random.Random(layers)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=CONTEXT,
            n_embd=WIDTH,
            n_layer=layers,
            n_head=HEADS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=steps)
    start = time.perf_counter()
    for step in range(steps):
        ids = torch.tensor([window(passages, tokenizer, rng) for _ in range(BATCH)])
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            seconds = time.perf_counter() - start
            click.echo(f"{layers} layers, step {step}: {loss.item():.3f} nats, {seconds:.0f} s")
    return model.eval()


def window(
    passages: list[str], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> list[int]:
    """CONTEXT tokens: whole passages of one case each, every one after START."""
    ids: list[int] = []
    while len(ids) < CONTEXT:
        text = rng.choice(passages)
        if rng.random() < SHOUTED:
            text = text.upper()
        ids += [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
    return ids[:CONTEXT]


if __name__ == "__main__":
    main()
