"""How the models of a sweep are loaded: options of `load_model`, checked before any model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibrate.common.errors import InputError
from calibrate.common.settings import check_batch_tokens
from calibrate.engine.loading import DTYPES

TABLE = "a table, as JSON or TOML has them"
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "device": ((str,), "text"),
    "device_map": ((str, dict), f"text or {TABLE}"),
    "dtype": ((str,), "text"),
    "batch_tokens": ((int,), "a whole number"),
    "blocks": ((str,), "text"),
    "revision": ((str,), "text, in double quotes where it reads as a number"),
    "trust_remote_code": ((bool,), "true or false"),
}
KWARGS = "chat_template_kwargs"  # which `calibrate` takes, so that no model is loaded anew for it
SAME_RESULTS = ("batch_tokens", "trust_remote_code")  # whatever these are


def split_loading(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `load_model`, each of the right kind, and the rest.

    Raises: InputError.

    >>> from calibrate.pipelines.sweep.loading import split_loading
    >>> split_loading({"dtype": "bfloat16", "trials": 3})
    ({'dtype': 'bfloat16'}, {'trials': 3})
    """
    for name, (kinds, words) in {**KINDS, KWARGS: ((dict,), TABLE)}.items():
        if name in options and not isinstance(options[name], kinds):
            raise InputError(f"{name.replace('_', '-')} must be {words}, got {options[name]!r}")
    loading = {name: value for name, value in options.items() if name in KINDS}
    if loading.get("dtype", "auto") not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {loading['dtype']!r}")
    check_batch_tokens(loading.get("batch_tokens", 1))
    return loading, {name: value for name, value in options.items() if name not in KINDS}
