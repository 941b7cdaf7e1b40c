# SPDX-License-Identifier: Apache-2.0
"""The package as users get it: built by colcon both ways, and installed by pip where there is no ROS."""

import os
import pathlib
import subprocess
import sys
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[2]
IMPORTS = (
    'import vla_policy_ros.core.chunk, vla_policy_ros.msg;'
    'from vla_policy_ros.msg import ActionChunk, PolicyStatus;'
    'from vla_policy_ros.sample import sample_bundle_path;'
    'assert (sample_bundle_path() / "bundle.yaml").is_file();'
    'print(vla_policy_ros.core.chunk.__file__)'
)


def run(command, **kwargs):
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def kernels_in(package):
    folder = pathlib.Path(package, 'gpu', 'kernels')
    return {path.name for path in folder.iterdir() if path.suffix in ('.cu', '.h')}


@pytest.mark.ros
@pytest.mark.slow
@pytest.mark.parametrize('flags', [[], ['--symlink-install']], ids=['plain', 'symlink'])
def test_colcon_builds_an_overlay_that_works(tmp_path, flags):
    build = [
        'colcon',
        '--log-base',
        str(tmp_path / 'log'),
        'build',
        *flags,
        '--base-paths',
        str(ROOT),
        '--packages-select',
        'vla_policy_ros',
        '--build-base',
        str(tmp_path / 'build'),
        '--install-base',
        str(tmp_path / 'install'),
        '--cmake-args',
        '-DBUILD_TESTING=OFF',
        f'-DPython3_EXECUTABLE={sys.executable}',
    ]
    run(build, cwd=tmp_path)
    setup = f'set -e; . {tmp_path}/install/setup.bash; cd {tmp_path};'

    def in_overlay(command):
        return run(['bash', '-c', setup + command])

    package = pathlib.Path(in_overlay(f"{sys.executable} -c '{IMPORTS}'").strip()).parents[1]
    assert package.is_relative_to(tmp_path)
    assert kernels_in(package) == kernels_in(ROOT / 'vla_policy_ros') != set()
    share = tmp_path / 'install' / 'vla_policy_ros' / 'share' / 'vla_policy_ros'
    assert (share / 'launch' / 'demo.launch.py').is_file()
    assert (share / 'config' / 'fastdds.xml').is_file()
    assert (share / 'config' / 'fastrtps.xml').is_file()
    programs = tmp_path / 'install' / 'vla_policy_ros' / 'lib' / 'vla_policy_ros'
    assert {path.name for path in programs.iterdir()} == {
        'vla-policy',
        'policy_node',
        'executor_node',
        'replay_node',
        'recorder_node',
        'simulated_robot_node',
    }
    assert 'replay' in in_overlay('vla-policy --help')
    run(build, cwd=tmp_path)  # a second build of the same folders


@pytest.mark.slow
def test_pip_installs_everything_but_ros(tmp_path):
    # The dependencies are those of this environment; what is tested is our own wheel.
    venv.create(tmp_path / 'venv', with_pip=False, symlinks=True)
    python = tmp_path / 'venv' / 'bin' / 'python'
    site = run([python, '-c', 'import sysconfig; print(sysconfig.get_paths()["purelib"])']).strip()
    source = tmp_path / 'source'
    run(['git', 'clone', '--quiet', '--local', str(ROOT), str(source)])
    run(
        [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-build-isolation']
        + ['--target', site, str(source)]
    )
    here = run([sys.executable, '-c', 'import sysconfig; print(sysconfig.get_paths()["purelib"])'])
    (pathlib.Path(site) / 'dependencies.pth').write_text(here)
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ('PYTHONPATH', 'AMENT_PREFIX_PATH')
    }
    code = (
        'import vla_policy_ros.tools.main as m, vla_policy_ros.sample as s;'
        'assert (s.sample_bundle_path() / "bundle.yaml").is_file();'
        'assert (s.sample_dataset_path() / "meta" / "info.json").is_file();'
        'print(m.__file__)'
    )
    package = pathlib.Path(
        run([python, '-c', code], cwd=tmp_path, env=environment).strip()
    ).parents[1]
    assert package.is_relative_to(site)
    assert kernels_in(package) == kernels_in(source / 'vla_policy_ros') != set()
