"""Time calibrate serve against generate, and write docs/serve.md.

    python scripts/measure_serve.py DIR [--page]

DIR is a calibration. Clients of five strengths ask at once, each for one reply; the same replies
are then made by transformers' `generate`, steered by `SteeringConfig.steer`, one after the other,
and by `calibrate.engine.generation` in one batch, all with as many threads as the server. Five
minutes on two cores.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import torch
from markdown_tables import DOCS, table
from openai import OpenAI
from playwright.sync_api import expect, sync_playwright
from records import page_option, read_records, write_records
from transformers import GenerationConfig

from calibrate import SteeringConfig, load
from calibrate.common.settings import Sampling
from calibrate.deploy.verify import open_model
from calibrate.engine.decoding import Row, decode
from calibrate.engine.sampling import noise_key
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.texts.concept import read_prompts

TARGET = DOCS / "serve.json"
CLIENTS = (1, 8, 32)
SHARES = (0.0, 0.5, 1.0, 1.5, 2.0)  # of the calibrated strength
SAMPLING = Sampling(max_new_tokens=64)
ROUNDS = 3  # each timed as often, in turn; the median counts
COMMAND = "from calibrate.cli import main; main()"
MIB = 1 << 20


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@page_option
def main(directory: Path | None, only_page: bool) -> None:
    if not only_page:
        if directory is None:
            raise click.UsageError("name a calibration")
        write_records(TARGET, measured(directory))
    (DOCS / "serve.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def measured(directory: Path) -> dict[str, Any]:
    """Every way timed in turn, so that what else the machine does meets all of them."""
    config = load(directory)
    loaded = open_model(config)
    prompts = list(read_prompts(None)[: max(CLIENTS)])
    strengths = [
        config.intervention.strength * SHARES[k % len(SHARES)] for k in range(len(prompts))
    ]
    process, address = started(directory)
    try:
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600)
        served(client, prompts[:1], strengths[:1])
        before = memory(process)
        rows = []
        for n in CLIENTS:
            asked = prompts[:n], strengths[:n]
            rounds = [
                (
                    served(client, *asked),
                    one_by_one(loaded, config, *asked),
                    in_one_batch(loaded, config, *asked),
                )
                for _ in range(ROUNDS)
            ]
            rows.append(row(n, rounds, memory(process)))
            click.echo(json.dumps(rows[-1]))
        draw(address)
    finally:
        process.terminate()
        process.wait()
    return {
        "model": config.model.id,
        "tokens": SAMPLING.max_new_tokens,
        "threads": torch.get_num_threads(),
        "idle_mib": before,
        "rows": rows,
    }


def draw(address: str) -> None:
    """A picture of the page after both replies."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.goto(address)
        page.locator("#tokens").fill("48")
        page.locator("#go").click()
        expect(page.locator("#stop")).to_be_disabled(timeout=120_000)
        page.screenshot(path=DOCS / "serve.png")
        browser.close()


def row(
    n: int, rounds: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]], peak: float
) -> dict[str, Any]:
    """Medians over the rounds."""
    served_, alone, batch = zip(*rounds, strict=True)

    def rate(found: tuple[dict[str, Any], ...]) -> float:
        return float(np.median([each["tokens"] / each["seconds"] for each in found]))

    return {
        "clients": n,
        "serve": rate(served_),
        "generate": rate(alone),
        "batch": rate(batch),
        "first_median": float(np.median([np.median(each["first"]) for each in served_])),
        "first_worst": float(max(max(each["first"]) for each in served_)),
        "equal": sum(a["texts"] == b["texts"] for a, b in zip(served_, batch, strict=True)),
        "rounds": len(rounds),
        "mib": peak,
    }


def started(directory: Path) -> tuple[subprocess.Popen[str], str]:
    """A server of its own process, and its address."""
    command = [sys.executable, "-c", COMMAND, "serve", str(directory), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = ""
    while "}" not in lines:
        lines += process.stdout.readline()
    return process, json.loads(lines)["address"]


def memory(process: subprocess.Popen[str]) -> float:
    """What a process holds, MiB."""
    return float(psutil.Process(process.pid).memory_info().rss / MIB)


def served(client: OpenAI, prompts: list[str], strengths: list[float]) -> dict[str, Any]:
    """What clients get that ask at once."""

    def ask(k: int) -> tuple[str, int, float]:
        begun = time.perf_counter()
        stream = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": prompts[k]}],
            max_tokens=SAMPLING.max_new_tokens,
            seed=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"strength": strengths[k]},
        )
        text, first, used = "", 0.0, 0
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter() - begun
                text += chunk.choices[0].delta.content
            used = chunk.usage.completion_tokens if chunk.usage else used
        return text, used, first

    started_at = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        texts, used, first = zip(*pool.map(ask, range(len(prompts))), strict=True)
    seconds = time.perf_counter() - started_at
    return {"texts": texts, "tokens": sum(used), "first": first, "seconds": seconds}


def one_by_one(
    loaded: LoadedModel, config: SteeringConfig, prompts: list[str], strengths: list[float]
) -> dict[str, Any]:
    """The same prompts and strengths by transformers' `generate`, one after the other."""
    made = 0
    sampling = GenerationConfig(
        do_sample=True,
        temperature=SAMPLING.temperature,
        top_p=SAMPLING.top_p,
        max_new_tokens=SAMPLING.max_new_tokens,
        eos_token_id=loaded.model.generation_config.eos_token_id,
        pad_token_id=loaded.tokenizer.eos_token_id,
    )
    started_at = time.perf_counter()
    with preserving_model_state(loaded):
        for prompt, strength in zip(prompts, strengths, strict=True):
            ids = torch.tensor([encode_prompt(loaded, prompt).ids])
            with config.steer(loaded, strength):
                out = loaded.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=sampling
                )
            made += out.shape[1] - ids.shape[1]
    return {"tokens": made, "seconds": time.perf_counter() - started_at}


def in_one_batch(
    loaded: LoadedModel, config: SteeringConfig, prompts: list[str], strengths: list[float]
) -> dict[str, Any]:
    """The same replies in one batch, as a calibration makes them: nothing waits for a client."""
    site = config.site
    rows = []
    for prompt, strength in zip(prompts, strengths, strict=True):
        steering = site.steering(strength) if strength else None
        rows.append(Row(encode_prompt(loaded, prompt), noise_key(0, prompt, 0), steering))
    started_at = time.perf_counter()
    with preserving_model_state(loaded):
        replies = decode(loaded, rows, SAMPLING)
    seconds = time.perf_counter() - started_at
    texts = tuple(loaded.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in replies)
    return {"texts": texts, "tokens": sum(map(len, replies)), "seconds": seconds}


def page(found: dict[str, Any]) -> str:
    """docs/serve.md."""
    rows = [
        [
            str(each["clients"]),
            f"{each['serve']:.1f}",
            f"{each['generate']:.1f}",
            f"{each['serve'] / each['generate']:.2f}",
            f"{each['batch']:.1f}",
            f"{each['first_median']:.2f}, {each['first_worst']:.2f}",
            f"{each['equal']} of {each['rounds']}",
            f"{each['mib']:,.0f}",
        ]
        for each in found["rows"]
    ]
    headings = [
        "clients", "serve, tokens/s", "`generate`, tokens/s", "ratio", "one batch, tokens/s",
        "first piece: median, worst s", "replies equal", "memory, MiB",
    ]  # fmt: skip
    return PAGE.format(
        model=found["model"],
        tokens=found["tokens"],
        threads=found["threads"],
        idle=f"{found['idle_mib']:,.0f}",
        table=table(headings, rows),
    )


PAGE = """# Serving steered models

`calibrate serve DIR...` serves calibrations of one model as OpenAI's clients speak it, on
127.0.0.1, with a page to try them on. Nothing comes from the network. It needs the extra `serve`.

![The page: a prompt, a slider of strengths over the laws, both replies](serve.png)

Each calibration is a model by the name of its directory, and the model itself is there by its own.
`/v1/chat/completions` and `/v1/completions` take `strength` and `concept` beside the usual fields;
the concept chooses where `model` is left out, or is the model's own name:

```python
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
client.chat.completions.create(
    model="joy-smollm2",
    messages=[{{"role": "user", "content": "How was your day?"}}],
    seed=0,
    extra_body={{"strength": 0.05}},
)
```

- **One batch.** Requests of any strength, sampling and length share it: they join and leave at
  every step. Joining is tried on the model first; one whose cache it does not suit, such as a
  sliding window, runs batches side by side, and one that only `generate` can serve, one reply at a
  time.
- **What is measured is what is served.** Before it listens, the server checks model, tokenizer,
  template and the recorded log-probabilities of every calibration, as `calibrate verify --quick`
  does. A reply with a `seed` is the one that `calibrate generate` gives. Temperature and top-p are
  those of the calibration's measurements unless the request says otherwise.
- **What would change the answer and is not served is refused**: penalties, `logit_bias`, tools,
  `response_format`. Completions take token ids, `echo` and `logprobs`, so that
  lm-evaluation-harness's `local-completions` scores the steered model.
- **Under load.** `--batch` replies run at once and `--queue` requests wait; beyond that the answer
  is 429, and 400 to a request of more replies than both together. A client that hangs up frees its
  place at the next step, and one that waits at once. A request has at most 1 MiB. The server writes
  nothing to disk.
- **Who may ask.** It listens on 127.0.0.1, answers to the names 127.0.0.1 and localhost alone,
  sends no CORS headers and takes nothing but `application/json`, so that no web page can use it.
  With another `--host` every name is answered: put what guards it in front.
- `/v1/models`, `/v1/calibrations` (strengths, laws and frontier, which the page draws), `/healthz`,
  `/metrics` for Prometheus.

## How fast

{model}, replies of at most {tokens} tokens, five strengths from 0 to twice the calibrated, every
client asking at once; {threads} thread(s), float32. `generate` is transformers' own, steered, one
reply after the other. One batch is the decoding of calibrations, with all prompts known beforehand
and their common beginning run once. Replies are equal if all texts of a round are those of the
batch. Medians of three rounds, taken in turn. Memory is what the server's process holds
afterwards; {idle} MiB before.

{table}"""

if __name__ == "__main__":
    main()
