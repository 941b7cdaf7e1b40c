# SPDX-License-Identifier: Apache-2.0
"""Fills what the next run of a loop begins with."""

from __future__ import annotations

from collections.abc import Mapping

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.chunk_prefix import (
    ChunkPrefix,
    PrefixTensors,
    prefix_specs,
    write_gains,
    write_weights,
)
from vla_policy_ros.bundle.graph import prefix_inputs
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.deployment.rtc import RtcSettings


class PrefixInput:
    """Writes a prefix into the tensors of the loop and, for `inputs`, into those of the network; allocates nothing large.

    Args:
        bundle: The bundle; it has passed `rtc_check.check_rtc`.
        settings: How the prefix counts.
        tensors: What the loop reads, host memory.
        pool: Host arrays of the network's own inputs for the prefix.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: RtcSettings,
        *,
        tensors: PrefixTensors[Array],
        pool: Mapping[str, Array],
    ) -> None:
        self._settings = settings
        self._tensors = tensors
        self._pool = pool
        self._inputs = prefix_inputs(bundle.manifest) if settings.kind == 'inputs' else None
        self.write(None)

    def write(self, prefix: ChunkPrefix | None) -> None:
        """Set the prefix of the next run; None for a chunk that begins with noise alone."""
        tensors, settings = self._tensors, self._settings
        num_rows, num_frozen = (len(prefix.rows), prefix.num_frozen) if prefix else (0, 0)
        if prefix:
            tensors.actions[:num_rows] = prefix.rows
        if settings.kind == 'guided':
            write_weights(
                tensors.factors,
                num_rows=num_rows,
                num_frozen=num_frozen,
                schedule=settings.schedule,
            )
            return
        tensors.num_rows[0] = num_rows
        write_gains(
            tensors.factors,
            num_rows=num_rows,
            num_frozen=num_frozen,
            ramp_rate=settings.ramp_rate,
        )
        self._write_inputs(num_rows)

    def _write_inputs(self, num_rows: int) -> None:
        inputs = self._inputs
        if inputs is None:
            return
        actions = self._pool[inputs.actions][0]
        actions[:num_rows] = self._tensors.actions[:num_rows]
        actions[num_rows:] = 0
        if inputs.mask:
            self._pool[inputs.mask][0, :num_rows] = 1
            self._pool[inputs.mask][0, num_rows:] = 0
        if inputs.length:
            self._pool[inputs.length][0] = num_rows


def loop_prefix_specs(bundle: Bundle) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """Return the specs of a bundle's `PrefixTensors`; the bundle has a loop."""
    loop = bundle.manifest.loop
    assert loop
    _, num_rows, width = bundle.tensors[loop.sample].shape
    assert num_rows
    assert width
    return prefix_specs(num_rows, width)


def prefix_pool_names(bundle: Bundle, settings: RtcSettings | None) -> list[str]:
    """Return the names of the pool tensors that a prefix fills."""
    inputs = prefix_inputs(bundle.manifest)
    if inputs is None or settings is None or settings.kind != 'inputs':
        return []
    return [name for name in (inputs.actions, inputs.mask, inputs.length) if name]
