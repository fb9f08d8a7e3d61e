"""Digests of content: equal content, equal digest, on every machine."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from mmcollapse.errors import MMCollapseError


def canonical_json(value: object) -> str:
    """The one JSON text of `value`: keys sorted, floats exact. NaN, infinities and other types: MMCollapseError."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise MMCollapseError(f"cannot be recorded as JSON: {error}") from error


def digest_of(value: object) -> str:
    """sha256 (64 hex digits) of the canonical JSON of `value`. Note that 1 and 1.0 differ."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 (64 hex digits) of named arrays: names, dtypes, shapes and bytes, whatever their order in `arrays`."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.hasobject:
            raise MMCollapseError(f"array {name!r} holds Python objects, which have no bytes to digest")
        # The header fixes the number of bytes that follow, so no two sets of arrays read the same.
        sha.update(canonical_json([name, array.dtype.str, array.shape]).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
