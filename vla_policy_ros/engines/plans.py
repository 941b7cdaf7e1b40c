# SPDX-License-Identifier: Apache-2.0
"""Built plans on disk: one folder per network, each plan with a JSON file that says what it depends on."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from vla_policy_ros.bundle.files import hash_file
from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.bundle.onnx_model import ModelTensor, read_model
from vla_policy_ros.core.cache import cache_folder, write_atomically
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.specs import TensorSpec, describe_tensor
from vla_policy_ros.engines.plan_facts import (
    BuildReport,
    BuiltPlan,
    Machine,
    PlanKey,
    find_misfits,
)

FOLDER_VARIABLE = 'VLA_PLAN_FOLDER'
_FACTS = TypeAdapter(BuiltPlan)


def default_plan_folder() -> Path:
    """Return `$VLA_PLAN_FOLDER`, or `vla_policy_ros/plans` in the user's cache folder (XDG base directories)."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen) if chosen else cache_folder('plans')


def network_hash(onnx_path: Path) -> str:
    """Return a SHA-256 over an ONNX file and the weight files it points to; its own name does not count.

    Raises:
        BundleError: It is no ONNX file.
        EngineError: The file, or a weight file, is missing (`missing_file`).
    """
    _require_file(onnx_path)
    digest = hashlib.sha256(hash_file(onnx_path).encode())
    for name in read_model(onnx_path, str(onnx_path)).weight_files:
        _require_file(onnx_path.parent / name)
        digest.update(f'\n{name} {hash_file(onnx_path.parent / name)}'.encode())
    return digest.hexdigest()


class PlanStore:
    """A folder of plans. Several processes may use it: files appear whole or not at all.

    Args:
        folder: The folder; None takes `default_plan_folder()`. It is made when the first plan is written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_plan_folder()

    def plans(self, network: str) -> list[BuiltPlan]:
        """Return all readable plans of a network hash, newest first."""
        found = (self._read(path) for path in self._network_folder(network).glob('*.json'))
        return sorted((p for p in found if p), key=lambda p: (p.created, p.path), reverse=True)

    def find(self, network: str, *, precision: Precision, machine: Machine) -> BuiltPlan:
        """Return the newest plan of a network that fits.

        Args:
            network: Hash of the network.
            precision: Precision it was built for.
            machine: Where it is to run.

        Raises:
            EngineError: There is none (`no_plan`), or none fits (`plan_mismatch`): the message lists what there is and
                why each does not fit.
        """
        plans = self.plans(network)
        misfits = [find_misfits(plan.key, precision, machine) for plan in plans]
        for plan, reasons in zip(plans, misfits, strict=True):
            if not reasons:
                return plan
        listed = (f'{p.path.name} ({"; ".join(r)})' for p, r in zip(plans, misfits, strict=True))
        raise EngineError(
            f'plans of network {network[:12]} in {self.folder}',
            got=', '.join(listed) or 'no plan',
            expected=f'a plan of precision {precision} for {machine}',
            next_step=f'Run `vla-policy build` with --engine {machine.library} --precision {precision} on this machine.',
            code='plan_mismatch' if plans else 'no_plan',
        )

    def add(
        self,
        content: memoryview,
        key: PlanKey,
        *,
        origin: Literal['built', 'foreign'] = 'built',
        report: BuildReport | None = None,
    ) -> BuiltPlan:
        """Write a plan; one of the same key is replaced, and stays usable for those who have it open.

        Args:
            content: The plan's bytes.
            key: What it depends on.
            origin: Who built it.
            report: What came out of the build.
        """
        digest = hashlib.sha256(content).hexdigest()
        stem = _stem(key)
        plan = BuiltPlan(
            path=self._network_folder(key.network_hash) / f'{stem}-{digest[:8]}.plan',
            key=key,
            num_bytes=content.nbytes,
            sha256=digest,
            created=datetime.now(timezone.utc).isoformat(timespec='microseconds'),
            origin=origin,
            report=report,
        )
        facts_path = plan.path.with_name(f'{stem}.json')
        replaced = self._read(facts_path)
        write_atomically(plan.path, content)
        # The store may be copied as a whole, so the facts hold the plan's name only.
        facts = _FACTS.dump_json(replace(plan, path=Path(plan.path.name)), indent=2)
        write_atomically(facts_path, memoryview(facts))
        if replaced and replaced.path != plan.path:
            replaced.path.unlink(missing_ok=True)
            replaced.kernel_cache_path.unlink(missing_ok=True)
        return plan

    def add_foreign(
        self, plan_path: Path, onnx_path: Path, *, key: PlanKey, tensors: Sequence[TensorSpec]
    ) -> BuiltPlan:
        """Take in a plan that was built elsewhere, such as by trtexec.

        Args:
            plan_path: The plan; it is copied.
            onnx_path: The network it was built from.
            key: What it depends on, as far as is known.
            tensors: Inputs and outputs of the plan, as its engine names them.

        Raises:
            EngineError: The plan has other tensors than the network (`foreign_plan`).
        """
        model = read_model(onnx_path, str(onnx_path))
        wanted = {tensor.name: tensor for tensor in (*model.inputs, *model.outputs)}
        found = {spec.name: spec for spec in tensors}
        for name in sorted(wanted.keys() | found.keys()):
            if not _same(wanted.get(name), found.get(name)):
                raise EngineError(
                    f'{plan_path}, tensor {name!r}',
                    got=_describe(found.get(name)),
                    expected=f'{_describe(wanted.get(name))} as in {onnx_path.name}',
                    next_step='Build the plan from this very network, without changing inputs or outputs.',
                    code='foreign_plan',
                )
        with map_file(plan_path) as content:
            return self.add(content, key, origin='foreign')

    def timing_cache_path(self, machine: Machine) -> Path:
        """Return where builds keep what they measured on a GPU with a library version."""
        gpu = machine.gpu.name if machine.gpu else 'any'
        return self.folder / f'timing-{_slug(machine.library, machine.version, gpu)}.cache'

    def _network_folder(self, network: str) -> Path:
        return self.folder / network

    def _read(self, facts_path: Path) -> BuiltPlan | None:
        """Read the facts of a plan; what is not there, or cannot be read, counts as no plan."""
        try:
            plan = _FACTS.validate_json(facts_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return replace(plan, path=facts_path.with_name(plan.path.name))


def is_whole(plan: BuiltPlan) -> bool:
    """Return whether the file of a plan is there and holds what was written."""
    try:
        with open_plan(plan):
            return True
    except EngineError:
        return False


@contextmanager
def open_plan(plan: BuiltPlan) -> Iterator[memoryview]:
    """Give the bytes of a plan for a `with` block, after checking that they are the ones that were written.

    Raises:
        EngineError: The file is missing or was changed (`damaged_plan`).
    """
    if not plan.path.is_file():
        raise _damaged(plan, 'no such file')
    with map_file(plan.path) as content:
        digest = hashlib.sha256(content).hexdigest()
        if digest != plan.sha256:
            raise _damaged(plan, f'{content.nbytes} bytes, sha256 {digest[:12]}…')
        yield content


@contextmanager
def map_file(path: Path) -> Iterator[memoryview]:
    """Give the bytes of a file for a `with` block without reading all of it into memory."""
    with path.open('rb') as file:
        if os.fstat(file.fileno()).st_size == 0:  # mmap takes no empty file
            yield memoryview(b'')
            return
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as content,
        ):
            yield content


def _damaged(plan: BuiltPlan, got: str) -> EngineError:
    return EngineError(
        str(plan.path),
        got=got,
        expected=f'{plan.num_bytes} bytes, sha256 {plan.sha256[:12]}…',
        next_step='Build the plan again with `vla-policy build`.',
        code='damaged_plan',
    )


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise EngineError(
            str(path),
            got='no such file',
            expected='an ONNX file, or a weight file beside one',
            next_step='Copy the network again, with all its files.',
            code='missing_file',
        )


def _stem(key: PlanKey) -> str:
    """Return a readable file name without suffix, with a hash of the whole key against collisions."""
    digest = hashlib.sha256(TypeAdapter(PlanKey).dump_json(key)).hexdigest()[:8]
    machine = key.machine
    gpu = machine.gpu.name if machine.gpu else 'any'
    return f'{key.options.precision}-{_slug(machine.library, machine.version, gpu)}-{digest}'


def _slug(*words: str) -> str:
    return re.sub(r'[^a-z0-9.-]+', '_', '-'.join(words).lower())


def _same(wanted: ModelTensor | None, found: TensorSpec | None) -> bool:
    if not wanted or not found or wanted.dtype != found.dtype:
        return False
    return len(wanted.shape) == len(found.shape) and all(
        not isinstance(size, int) or size == other
        for size, other in zip(wanted.shape, found.shape, strict=True)
    )


def _describe(tensor: ModelTensor | TensorSpec | None) -> str:
    if tensor is None:
        return 'no such tensor'
    return describe_tensor(tensor.dtype, tensor.shape)
