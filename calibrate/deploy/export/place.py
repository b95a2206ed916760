"""Names that travel: where any program, in any folder, finds the model that a config is for.

A hub id is one. A directory is named by its full path; a `.gguf` file and an embedded model by the
full path of the directory in the user cache that holds them as transformers loads them. What others
are to read names a hub id or nothing.
"""

from __future__ import annotations

from pathlib import Path

from calibrate.artefact.config import SteeringConfig
from calibrate.deploy.export.adapters import carries_adapter
from calibrate.engine.loading import HUB_ID, is_hub_id
from calibrate.models.architecture import base_of
from calibrate.models.model import LoadedModel


def place_of(loaded: LoadedModel) -> str | None:
    """What `from_pretrained` finds a model by, in any folder; None if it is only in memory."""
    own = str(getattr(base_of(loaded.model).config, "_name_or_path", None) or "")
    if carries_adapter(loaded.model):
        # An adapter's directory was named; of one that was put on in memory there is no name.
        own = "" if loaded.name == own else loaded.name
    if own and Path(own).exists():
        return str(Path(own).resolve())
    return own if HUB_ID.fullmatch(own) else None


def hub_id_of(config: SteeringConfig) -> str | None:
    """The hub id of the config's model; None for one from elsewhere, or in memory."""
    model = config.model
    known = "/" in model.id or model.revision is not None  # else it may be a class's name
    return model.id if known and is_hub_id(model.id) else None


def commit_of(config: SteeringConfig, place: str | None) -> str | None:
    """The commit of the config's model, if a name is its hub id and the commit is known."""
    return config.model.revision if place and place == hub_id_of(config) else None


def to_be_named(place: str | None, loaded: LoadedModel, what: str) -> tuple[str, ...]:
    """A line that says what is to be filled in, for a model that no name leads to."""
    if place is not None:
        return ()
    adapter = ", with its adapter," if carries_adapter(loaded.model) else ""
    return (f"save the model{adapter} with save_pretrained, and set {what} to its directory",)
