"""Run a GGUF model in llama.cpp through its C interface, with a control vector or without.

The shared library comes inside a Python wheel (xllamacpp). llama.cpp's parameter structs change
from release to release and pass by value; here they are opaque blocks larger than any of them,
filled by the library's own defaults, and the few fields that matter are found by those defaults:
attention and cache types, so that both are computed in float32. A library whose defaults look
otherwise is refused rather than guessed at.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from calibrate.common.errors import InputError, ModelError

OPAQUE_BYTES = 1024  # more than any parameter struct has had; the rest is ignored
CONTEXT, BATCH, MICRO_BATCH = 512, 2048, 512  # the defaults that begin the context's parameters
UNSET = [-1, -1, -1, -1]  # rope scaling, pooling, attention, flash attention: left to the library
F16, F32, OFF = 1, 0, 0  # GGML_TYPE_F16 and _F32; flash attention off


class _Opaque(ctypes.Structure):
    _fields_ = (("words", ctypes.c_int32 * (OPAQUE_BYTES // 4)),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class LlamaCpp:
    """A GGUF model in llama.cpp, on the CPU, its attention and cache in float32.

    context_length: how many tokens it is to hold at once.
    A context manager: the model is freed at its end.
    Raises: ModelError if the file cannot be loaded, or its context does not fit in memory.
    """

    def __init__(self, gguf: str | Path, context_length: int = CONTEXT) -> None:
        self._lib = _library()
        path = str(gguf).encode()
        self._model = self._lib.llama_model_load_from_file(
            path, self._lib.llama_model_default_params()
        )
        if not self._model:
            raise ModelError(f"llama.cpp cannot load {gguf}; it must be a GGUF model file")
        self._length = max(context_length, CONTEXT)
        params = _exact(self._lib.llama_context_default_params(), self._length)
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            self._lib.llama_model_free(self._model)
            raise ModelError(
                f"llama.cpp must hold {self._length} tokens of {gguf} at once, and cannot make "
                "room for them; give shorter prompts, or free some memory"
            )
        vocabulary = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary_size = int(self._lib.llama_vocab_n_tokens(vocabulary))
        self.hidden_size = int(self._lib.llama_model_n_embd(self._model))
        self.num_layers = int(self._lib.llama_model_n_layer(self._model))

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_error: object) -> None:
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def steer(self, directions: dict[int, np.ndarray] | None) -> None:
        """Apply a control vector's directions, by 0-based block from 1 on; None removes it.

        Raises: ModelError if llama.cpp does not take it.
        """
        if directions is None:
            self._apply(None, 0)
            return
        values = np.zeros((self.num_layers - 1, self.hidden_size), dtype=np.float32)
        for layer, direction in directions.items():
            values[layer - 1] = direction
        if self._apply(values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size):
            raise ModelError("llama.cpp does not take this control vector for this model")

    def _apply(self, data: object, size: int) -> int:
        first, last = 1, self.num_layers
        apply = self._lib.llama_set_adapter_cvec
        return int(apply(self._context, data, size, self.hidden_size, first, last))

    def logits(self, ids: Sequence[int], after: int = 0) -> np.ndarray:
        """Logits after every position, float32 array of shape (n_ids, vocabulary_size).

        after: how many tokens run before stay as context; 0 starts anew.
        Raises: ModelError for more tokens than it holds, or that llama.cpp does not run.
        """
        if after + len(ids) > self._length:  # llama.cpp would end the process
            raise ModelError(
                f"llama.cpp must be given at most the {self._length} tokens that it was opened "
                f"for, got {after + len(ids)}; open it for longer texts"
            )
        if after == 0:
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for index, token in enumerate(ids):
                batch.token[index], batch.pos[index] = token, after + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = 1
            status = self._lib.llama_decode(self._context, batch)
            if status:
                raise ModelError(f"llama.cpp cannot run {len(ids)} tokens (status {status})")
            values = self._lib.llama_get_logits(self._context)
            shape = (len(ids), self.vocabulary_size)
            copied: np.ndarray = np.ctypeslib.as_array(values, shape=shape).copy()
            return copied
        finally:
            self._lib.llama_batch_free(batch)


def is_installed() -> bool:
    """Whether there is a llama.cpp to run."""
    return importlib.util.find_spec("xllamacpp") is not None


@cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise InputError(
            "running llama.cpp needs its library: pip install 'steering-calibrate[llama-cpp]'"
        )
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_silence, None)
    return library


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
POINTER, INT32 = ctypes.c_void_p, ctypes.c_int32
SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "llama_model_default_params": (_Opaque, ()),
    "llama_context_default_params": (_Opaque, ()),
    "llama_model_load_from_file": (POINTER, (ctypes.c_char_p, _Opaque)),
    "llama_init_from_model": (POINTER, (POINTER, _Opaque)),
    "llama_model_get_vocab": (POINTER, (POINTER,)),
    "llama_vocab_n_tokens": (INT32, (POINTER,)),
    "llama_model_n_embd": (INT32, (POINTER,)),
    "llama_model_n_layer": (INT32, (POINTER,)),
    "llama_get_memory": (POINTER, (POINTER,)),
    "llama_memory_clear": (None, (POINTER, ctypes.c_bool)),
    "llama_batch_init": (_Batch, (INT32, INT32, INT32)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (INT32, (POINTER, _Batch)),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), (POINTER,)),
    "llama_set_adapter_cvec": (
        INT32,
        (POINTER, POINTER, ctypes.c_size_t, INT32, INT32, INT32),
    ),
    "llama_free": (None, (POINTER,)),
    "llama_model_free": (None, (POINTER,)),
    "llama_log_set": (None, (LOG, POINTER)),
}

_silence = LOG(lambda _level, _text, _data: None)  # kept, since the library keeps a pointer to it


def _exact(params: _Opaque, length: int) -> _Opaque:
    """Ask for float32 and a context's length, at the fields recognised by their defaults.

    Raises: InputError if they cannot be recognised.
    """
    words = list(params.words[:64])
    unset = next((i for i in range(60) if words[i : i + 4] == UNSET), None)
    # After these four: eight numbers of rope scaling, padding, a null callback and its data.
    types = None
    if unset is not None:
        after = range(unset + 12, unset + 24)
        types = next((i for i in after if words[i : i + 2] == [F16, F16]), None)
    if words[:3] != [CONTEXT, BATCH, MICRO_BATCH] or unset is None or types is None:
        raise InputError(
            "this release of llama.cpp has parameters that are not recognised; use the xllamacpp "
            "release that the constraints name"
        )
    for index, value in (
        (0, length), (1, length), (2, length), (unset + 3, OFF), (types, F32), (types + 1, F32),
    ):  # fmt: skip
        params.words[index] = value
    return params
