# SPDX-License-Identifier: Apache-2.0
"""Files of a GR00T checkpoint as N1.6 and N1.7 write them, without weights."""

import json

from vla_policy_ros.export.groot.checkpoint import read_checkpoint

TAG, ROWS = 'new_embodiment', 3


def config_of(rep='ABSOLUTE', kind='NON_EEF', form='DEFAULT', **more):
    return {'rep': rep, 'type': kind, 'format': form, 'state_key': None, **more}


def modalities():
    return {
        'video': {'delta_indices': [-15, 0], 'modality_keys': ['front', 'wrist']},
        'state': {
            'delta_indices': [0],
            'modality_keys': ['arm', 'heading', 'speed'],
            'sin_cos_embedding_keys': ['heading'],
            'mean_std_embedding_keys': ['speed'],
        },
        'action': {
            'delta_indices': list(range(ROWS)),
            'modality_keys': ['arm', 'gripper', 'speed'],
            'mean_std_embedding_keys': ['speed'],
            'action_configs': [config_of('RELATIVE'), config_of(), config_of('DELTA')],
        },
        'language': {'delta_indices': [0], 'modality_keys': ['annotation.task']},
    }


def statistics_of(*columns):
    """Each column as (min, max, mean, std, q01, q99)."""
    names = ('min', 'max', 'mean', 'std', 'q01', 'q99')
    return {name: [column[i] for column in columns] for i, name in enumerate(names)}


ARM = ((-2, 2, 0.5, 1, -1, 1), (0, 10, 5, 2, 1, 9))
SPEED = ((0, 4, 2, 0.5, 0, 4),)


def statistics():
    steps = [
        statistics_of((-k, k, 0, 0.5, -k / 2, k / 2), (-2 * k, 2 * k, 0, 1, -k, k))
        for k in (1, 2, 3)
    ]
    per_step = {name: [step[name] for step in steps] for name in steps[0]}
    return {
        'state': {
            'arm': statistics_of(*ARM),
            'heading': statistics_of((-3, 3, 0, 1, -3, 3)),
            'speed': statistics_of(*SPEED),
        },
        'action': {
            'arm': statistics_of(*ARM),
            'gripper': statistics_of((0, 1, 0.5, 0.5, 0.25, 0.75)),
            'speed': statistics_of(*SPEED),
        },
        'relative_action': {'arm': per_step},
    }


def settings(**changes):
    return {
        'modality_configs': {TAG: modalities()},
        'use_percentiles': True,
        'clip_outliers': True,
        'apply_sincos_state_encoding': True,
        'use_relative_action': True,
        'formalize_language': True,
        'max_state_dim': 8,
        **changes,
    }


def changed(kind, **values):
    new = modalities()
    new[kind].update(values)
    return {'modality_configs': {TAG: new}}


def write_files(folder, *, inner='', numbers=None, held=None, config=None, **changes):
    """Write the files of a checkpoint but the weights, and return its folder."""
    place = folder / inner
    place.mkdir(parents=True)
    config = {'model_type': 'Gr00tN1d7', 'action_horizon': 5} if config is None else config
    (folder / 'config.json').write_text(json.dumps(config))
    documents = {
        'processor_config': {'processor_kwargs': settings(**changes)},
        'statistics': held or {TAG: statistics()},
        'embodiment_id': numbers or {TAG: 10},
    }
    for name, document in documents.items():
        (place / f'{name}.json').write_text(json.dumps(document))
    return folder


def read(folder, *, version='n1.7', **more):
    return read_checkpoint(folder, version=version, **more)
