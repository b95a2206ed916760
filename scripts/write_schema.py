"""Write the JSON Schema of the steering config to docs/steering-config.schema.json."""

from __future__ import annotations

import json
from pathlib import Path

from calibrate.artefact.config import SteeringConfig

TARGET = Path(__file__).parents[1] / "docs" / "steering-config.schema.json"


def schema() -> str:
    """Return the schema as it is published."""
    facts = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **SteeringConfig.model_json_schema(),
    }
    return json.dumps(facts, indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(schema(), encoding="utf-8")
