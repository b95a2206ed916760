"""Write the JSON Schema of the steering config to docs/steering-config.schema.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

from calibrate.artefact.config import SteeringConfig

TARGET = Path(__file__).parents[1] / "docs" / "steering-config.schema.json"
PUBLISHED = {
    "Capability": "CapabilitySection",
    "CapabilityReport": "CapabilitiesSection",
    "Goodness": "GoodnessSection",
    "Interval": "IntervalSection",
    "ModelIdentity": "ModelSection",
    "Reference": "ReferenceSection",
}  # what readers of the schema know the records as
NAMES = re.compile(rf'"(#/\$defs/)?({"|".join(PUBLISHED)})"')


def schema() -> str:
    """Return the schema as it is published."""
    made = json.dumps(SteeringConfig.model_json_schema())
    facts = json.loads(NAMES.sub(lambda name: f'"{name[1] or ""}{PUBLISHED[name[2]]}"', made))
    facts["$defs"] = dict(sorted(facts["$defs"].items()))
    facts = {"$schema": "https://json-schema.org/draft/2020-12/schema", **facts}
    return json.dumps(facts, indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(schema(), encoding="utf-8")
