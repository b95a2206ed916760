"""A snippet: code that steers, for transformers, nnsight and TransformerLens, and the vector.

For consumers that take code rather than a file. It can express every config, the last position too,
and renders prompts as they were rendered for the calibration.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from shlex import quote

import torch

from calibrate.artefact.config import VECTOR_FILE, SteeringConfig
from calibrate.deploy.export.exporter import AnyModel, NextLogProbs
from calibrate.deploy.export.place import commit_of, to_be_named
from calibrate.deploy.verify import as_calibrated
from calibrate.models.architecture import base_of
from calibrate.models.model import LoadedModel
from calibrate.models.rendering import frozen_template
from calibrate.search.reference import next_log_probs

CODE_FILE = "steer.py"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE = "templates/steer.py.txt"


class Snippet(AnyModel):
    """Writes a directory with the code and the vector."""

    name = "snippet"
    directory = True
    needs_model = True
    renders = True

    def check_config(self, config: SteeringConfig) -> None:
        """Accept any config."""

    def write(
        self, config: SteeringConfig, loaded: LoadedModel | None, path: Path, target: Path
    ) -> None:
        """Write the code, the vector, and the chat template where its date is frozen."""
        assert loaded is not None
        intervention = config.intervention
        rendering = as_calibrated(config, loaded).rendering
        frozen = rendering.date is not None
        names = {id(module): name for name, module in base_of(loaded.model).named_modules()}
        place = self.place(config, loaded)
        code = _template().format(
            model=place or config.model.id,
            revision=commit_of(config, place),
            dtype=config.model.dtype,
            concept=f"{config.concept.direction} {config.concept.name}",
            strength=intervention.strength,
            last_only=intervention.positions == "last",
            blocks=names[id(loaded.blocks)],
            file=CODE_FILE,
            vector=VECTOR_FILE,
            steered={block.layer: (block.key, block.weight) for block in config.steered_blocks},
            kwargs=dict(rendering.kwargs),
            as_parts=rendering.content == "parts",
            template=TEMPLATE_FILE if frozen else None,
            trailing=rendering.trailing[1 if loaded.is_chat else 0],
        )
        if frozen:
            template = frozen_template(loaded.tokenizer, rendering)
            (path / TEMPLATE_FILE).write_text(template, encoding="utf-8", newline="")
        (path / CODE_FILE).write_text(code, encoding="utf-8")
        (path / VECTOR_FILE).write_bytes(config.files()[config.vector.file])

    def serve(
        self, config: SteeringConfig, loaded: LoadedModel | None, target: Path
    ) -> tuple[str, ...]:
        """By itself, from any folder, or imported."""
        assert loaded is not None
        place, code = self.place(config, loaded), target / CODE_FILE
        return (
            f"python {quote(str(code))} 'A prompt'",
            *to_be_named(place, loaded, f"MODEL in {code}"),
        )

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Run the code, and let it steer the model."""
        steered = runpy.run_path(str(path / CODE_FILE))["steered"]

        def log_probs(ids: Sequence[int]) -> torch.Tensor:
            with steered(base_of(loaded.model)):
                return next_log_probs(loaded, ids)

        yield log_probs


def _template() -> str:
    return files("calibrate.deploy.export").joinpath(TEMPLATE).read_text(encoding="utf-8")
