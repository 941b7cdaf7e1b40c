# SPDX-License-Identifier: Apache-2.0
"""The files of a bundle: all listed, none changed, none outside its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vla_policy_ros.bundle.manifest import MANIFEST_NAME, Manifest
from vla_policy_ros.core.errors import BundleError

_CHUNK_BYTES = 1 << 20


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def list_files(folder: Path) -> list[str]:
    """Return the names of all files below a bundle's folder but the manifest, relative to it and sorted."""
    found = (path for path in folder.rglob('*') if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder).as_posix() for path in found)
    return sorted(name for name in names if name != MANIFEST_NAME)


def escapes(name: str) -> bool:
    """Tell whether a name leads out of the folder.

    A link may lead where it likes: `colcon build --symlink-install` makes one of every file, and the hash tells whether
    the right content lies behind it.
    """
    pure = PurePosixPath(name)
    return pure.is_absolute() or '..' in pure.parts


def find_file_faults(folder: Path, manifest: Manifest) -> dict[str, BundleError]:
    """Compare the folder with `files`; return the first fault of each file, by its name."""
    faults: dict[str, BundleError] = {}
    for name, expected in manifest.files.items():
        fault = _find_fault(folder, name, expected)
        if fault:
            faults[name] = fault
    for name in sorted(set(list_files(folder)) - set(manifest.files)):
        faults[name] = BundleError(
            str(folder / name),
            got='a file that the manifest does not list',
            expected='only the files named under `files`',
            next_step='Remove the file, or write the bundle again.',
            code='unlisted_file',
        )
    return faults


def find_reference_faults(manifest: Manifest) -> list[BundleError]:
    """Return a fault for every file that the manifest names somewhere and does not list under `files`."""
    return [
        BundleError(
            f'{MANIFEST_NAME}: {place}',
            got=f'{name!r}, which has no hash',
            expected='a file listed under `files`',
            next_step='Correct the name, or write the bundle again.',
            code='file_not_listed',
        )
        for place, name in _references(manifest)
        if name not in manifest.files
    ]


def _references(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for index, stage in enumerate(manifest.stages):
        yield f'stages[{index}].onnx', stage.onnx
    if manifest.instruction:
        yield 'instruction.tokenizer', manifest.instruction.tokenizer
    if manifest.statistics:
        yield 'statistics', manifest.statistics
    if manifest.probe:
        yield 'probe', manifest.probe


def _find_fault(folder: Path, name: str, expected: str) -> BundleError | None:
    place = f'{MANIFEST_NAME}: files.{name}'
    if escapes(name):
        return BundleError(
            place,
            got='a path that leads out of the bundle',
            expected='a file inside the folder',
            next_step='Copy the file into the bundle and list it by its plain name.',
            code='escaping_path',
        )
    if not (folder / name).is_file():
        return BundleError(
            place,
            got='no such file',
            expected=f'{name} in {folder}',
            next_step='Copy the bundle again, with all its files.',
            code='missing_file',
        )
    found = hash_file(folder / name)
    if found != expected:
        return BundleError(
            place,
            got=f'sha256 {found[:12]}…',
            expected=f'{expected[:12]}…',
            next_step='The file was changed or damaged: copy it again, or write the bundle again.',
            code='wrong_hash',
        )
    return None
