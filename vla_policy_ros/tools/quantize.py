# SPDX-License-Identifier: Apache-2.0
"""`vla-policy quantize`: a bundle in int8 for engines that run a file as it is, OpenVINO above all."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_policy_ros.tools.arguments import Subparsers, add_bundle, add_command, bundle_path
from vla_policy_ros.tools.calibrating import add_calibration, check_measuring, find_calibration
from vla_policy_ros.tools.console import print_facts, print_json, print_table, show_waiting

if TYPE_CHECKING:
    from vla_policy_ros.bundle.bundle import Bundle
    from vla_policy_ros.export.quantized_bundle import QuantizedBundle

_EXAMPLES = """\
  vla-policy quantize --bundle bundles/pick_v3 --out bundles/pick_v3_int8 --calibrate ~/datasets/pick --samples 64
  vla-policy quantize --bundle bundles/pick_v3 --out bundles/pick_v3_int8 --calibrate ~/datasets/pick --keep-loss-below 1e-4
  vla-policy quantize --bundle sample --out bundles/sample_int8 --calibrate sample
"""
_MIB = 2**20


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'quantize',
        run=run,
        summary='make a bundle in int8, for OpenVINO on CPUs',
        description='Write a new bundle whose large products are in int8 (QuantizeLinear and DequantizeLinear in the ONNX files), '
        'and hold it against the old one. OpenVINO gains by it on CPUs with 8-bit instructions; ONNX Runtime runs it, more slowly, in less '
        'memory; `vla-policy build` takes it without a calibration. For TensorRT alone, `vla-policy build --precision int8` does this on the way.',
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    parser.add_argument(
        '--out', required=True, type=Path, metavar='BUNDLE', help='new or empty folder'
    )
    add_calibration(parser, title='calibration; one of --calibrate and --calibration is needed')


def run(args: argparse.Namespace) -> int:
    """Write the bundle and print what was done; returns 0.

    Raises:
        VlaPolicyError: There is no calibration, the dataset is not the policy's, or the new policy comes out too far away.
    """
    from vla_policy_ros.bundle.bundle import load_bundle
    from vla_policy_ros.export.prepare import no_calibration
    from vla_policy_ros.export.quantized_bundle import PRECISION, quantize_bundle

    check_measuring(args)
    bundle = load_bundle(bundle_path(args.bundle))
    calibration = find_calibration(args, bundle, [PRECISION])
    if calibration is None:
        raise no_calibration(PRECISION)
    with show_waiting('quantising'):
        quantized = quantize_bundle(bundle, args.out, calibration)
    if args.json:
        print_json(_describe(bundle, quantized))
    else:
        _print(bundle, quantized)
    return 0


def _describe(bundle: Bundle, quantized: QuantizedBundle) -> dict[str, Any]:
    parity = quantized.policy
    return {
        'bundle': str(quantized.bundle.folder),
        'cosine': parity.cosine,
        'max_error': parity.max_error,
        'networks': [
            {
                'onnx': name,
                'products': len(report.products),
                'kept': dict(report.left_out),
                'weights': report.weights,
                'bytes_before': _count_bytes(bundle, name),
                'bytes': _count_bytes(quantized.bundle, name),
            }
            for name, report in quantized.networks.items()
        ],
    }


def _print(bundle: Bundle, quantized: QuantizedBundle) -> None:
    document = _describe(bundle, quantized)
    print_facts({'bundle': document['bundle']})
    rows = [
        (
            network['onnx'],
            str(network['products']),
            str(len(network['kept'])),
            f'{network["weights"]:,}',
            f'{network["bytes_before"] / _MIB:.1f}',
            f'{network["bytes"] / _MIB:.1f}',
        )
        for network in document['networks']
    ]
    headers = ('network', 'products in int8', 'kept', 'weights in int8', 'MiB before', 'MiB')
    print_table(headers, rows, right=(1, 2, 3, 4, 5))
    print(
        f'\nThe policy comes within {document["max_error"]:.2g} of the unquantised one on its probe, cosine {document["cosine"]:.6f}.'
        '\nProve it on data that no calibration saw: `vla-policy checklist`.'
    )


def _count_bytes(bundle: Bundle, onnx: str) -> int:
    """Return the size of a network with its weight files."""
    from vla_policy_ros.bundle.onnx_model import read_model

    path = bundle.folder / onnx
    files = [path, *(path.parent / name for name in read_model(path, onnx).weight_files)]
    return sum(file.stat().st_size for file in files)
