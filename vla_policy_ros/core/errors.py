# SPDX-License-Identifier: Apache-2.0
"""The one error tree: every message says where, what was got, what was expected and what to do next."""

from __future__ import annotations

from typing import ClassVar


class VlaPolicyError(Exception):
    """Root of all errors that this package raises on purpose.

    Args:
        where: File, dotted path, topic or stream the fault was found in.
        got: What was found there.
        expected: What would have been right.
        next_step: One sentence that tells the reader what to do.
        code: Name of the fault in snake_case, as it appears in counters and reports.
    """

    default_code: ClassVar[str] = 'error'

    def __init__(
        self,
        where: str,
        *,
        got: object,
        expected: str,
        next_step: str,
        code: str | None = None,
    ) -> None:
        self.where = where
        self.got = str(got)
        self.expected = expected
        self.next_step = next_step
        self.code = code or self.default_code
        super().__init__(f'{where}: got {self.got}, expected {expected}. {next_step}')

    def as_dict(self) -> dict[str, str]:
        """Return the facts as plain strings, for reports and `--json`."""
        return {
            'code': self.code,
            'where': self.where,
            'got': self.got,
            'expected': self.expected,
            'next_step': self.next_step,
        }


class SpecMismatchError(VlaPolicyError, ValueError):
    """An array does not fit the spec it is meant for."""

    default_code = 'spec_mismatch'


class ConfigurationError(VlaPolicyError, ValueError):
    """A deployment file, a ROS parameter or an option has a wrong value."""

    default_code = 'bad_configuration'


class BundleError(VlaPolicyError, ValueError):
    """A policy bundle is broken, or does not fit what it is used with."""

    default_code = 'bad_bundle'


class DatasetError(VlaPolicyError, ValueError):
    """A dataset or a bag is broken, incomplete or of an unknown format."""

    default_code = 'bad_dataset'


class ImageError(VlaPolicyError, ValueError):
    """An image cannot be decoded: unknown encoding, truncated data, impossible size."""

    default_code = 'bad_image'


class StateError(VlaPolicyError, ValueError):
    """A joint-state sample cannot be used: a joint is missing, or a value is not finite."""

    default_code = 'bad_state'


class InstructionError(VlaPolicyError, ValueError):
    """An instruction cannot be used, for example an empty one where the policy needs words."""

    default_code = 'bad_instruction'


class EngineError(VlaPolicyError, RuntimeError):
    """An engine cannot be built, does not fit its network, or failed while it ran."""

    default_code = 'engine_failed'


class GpuError(VlaPolicyError, RuntimeError):
    """There is no GPU or driver to use, or the driver refused a call."""

    default_code = 'gpu_failed'

    @property
    def is_lasting(self) -> bool:
        """Whether the driver will refuse all later calls too: after a fault on the GPU its context is lost."""
        return self.code == self.default_code


class ChunkRejectedError(VlaPolicyError, ValueError):
    """A chunk failed its check and was not published."""

    default_code = 'chunk_rejected'


class StaleEpochError(VlaPolicyError, RuntimeError):
    """A result belongs to an epoch that a reset has ended."""

    default_code = 'stale_epoch'


class MissingDependencyError(VlaPolicyError, ImportError):
    """An optional part (ROS, an engine's library) is asked for and not installed."""

    default_code = 'missing_dependency'
