"""Train on one of two processes: run by torch.distributed, told where to write."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from transformers import Trainer, TrainingArguments, default_data_collator

import calibrate
from calibrate.common.settings import Sampling

folder = Path(sys.argv[1])
arguments = TrainingArguments(
    output_dir=str(folder), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
    save_strategy="no", disable_tqdm=True, ddp_backend="gloo",
)  # fmt: skip
tokenizer = tiny.tokenizer()
rows = [
    {"input_ids": (ids := tokenizer(text)["input_ids"][:8]), "labels": list(ids)}
    for text in tiny.texts(tiny.BRIGHT, 16)
]
trainer = Trainer(
    tiny.model("gpt2"),
    arguments,
    train_dataset=rows,
    data_collator=default_data_collator,
    processing_class=tokenizer,
)
found = calibrate.CalibrationCallback(
    tiny.concept(60), every=2, prompts=folder / "prompts.txt", layer="search", ce_budget=0.4,
    min_gain=0.0, trials=4, teacher="none", audit=None, guard=None,
    sampling=Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12),
).attach(trainer)  # fmt: skip
trainer.train()
total = sum(float(weight.double().sum()) for weight in trainer.model.state_dict().values())
told = f"{len(found.history)} {total!r}"
(folder / f"rank-{arguments.process_index}").write_text(told)
