"""The examples in docstrings are true, and every public name has one.

They run in a folder with a finished calibration, `joy/`, and what is in `namespace` below. Of the
errors only the base class and those with more than a message have an example: all are caught alike.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import shutil

import numpy as np
import pytest
import tiny

import calibrate
import probes
from calibrate.engine.loading import load_model


def _examples():
    """The docstrings with examples of all modules, by name."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = ["calibrate", "probes"]
    for package in (calibrate, probes):
        modules += [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return {
        example.name: example
        for name in modules
        for example in finder.find(importlib.import_module(name), name)
        if example.examples
    }


EXAMPLES = _examples()
PUBLIC = [getattr(package, name) for package in (calibrate, probes) for name in package.__all__]
WITH_FACTS = (calibrate.CalibrateError, calibrate.Infeasible)


@pytest.fixture
def namespace(finished, tiny_options, tmp_path, monkeypatch):
    """What a user has at hand: a model of three blocks of size 32, texts, and a calibration."""
    shutil.copytree(finished.directory, tmp_path / "joy")
    shutil.copy(tiny_options["prompts"], tmp_path / "prompts.txt")
    monkeypatch.chdir(tmp_path)
    model, tokenizer, concept = tiny.model("gpt2"), tiny.tokenizer(), tiny_options["concept"]
    return {
        "calibrate": calibrate,
        "probes": probes,
        "np": np,
        "model": model,
        "tokenizer": tokenizer,
        "loaded": load_model(model, tokenizer),
        "concept": concept,
        "positives": [text.text for text in concept.texts.positives],
        "negatives": [text.text for text in concept.texts.negatives],
        "replies": tiny.texts(tiny.VOCABULARY[5:], 40, seed=3),
        "result": finished.result,
        "options": {k: v for k, v in tiny_options.items() if k not in ("concept", "tokenizer")},
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_true(name, namespace):
    report: list[str] = []
    example = EXAMPLES[name]
    example.globs.update(namespace)
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: f"{thing.__module__}.{thing.__name__}")
def test_a_public_name_has_an_example(thing):
    is_error = isinstance(thing, type) and issubclass(thing, calibrate.CalibrateError)
    if not is_error or thing in WITH_FACTS:
        assert f"{thing.__module__}.{thing.__name__}" in EXAMPLES
