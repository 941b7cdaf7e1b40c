# SPDX-License-Identifier: Apache-2.0
"""Kernel signatures: how arguments are laid out in the one buffer that the driver reads them from."""

from __future__ import annotations

import re
import struct

_PART = re.compile(r'[Piqf]|\d+s')


def argument_codes(signature: str) -> tuple[str, ...]:
    """Return the `struct` code of every argument, with the alignment that the device's compiler gives it.

    Args:
        signature: `P` address, `i` int, `q` int64, `f` float, `<n>s` struct of n bytes by value. `struct` itself would
            not align the last kind; ours hold addresses or int64, so they are aligned to 8 bytes.
    """
    codes = _PART.findall(signature)
    if ''.join(codes) != signature:
        raise ValueError(f'{signature!r} is no kernel signature')
    return tuple(f'0q{code}' if code.endswith('s') else code for code in codes)


def argument_offsets(signature: str) -> tuple[int, ...]:
    """Return where every argument begins, and at the end the size of all in bytes."""
    offsets, before = [], '@'
    for code in argument_codes(signature):
        alignment = '0q' if code.endswith('s') else f'0{code}'
        offsets.append(struct.calcsize(before + alignment))
        before += code
    return (*offsets, struct.calcsize(before))
