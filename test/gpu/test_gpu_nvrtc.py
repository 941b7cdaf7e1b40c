# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

from vla_policy_ros.core.cache import cache_folder
from vla_policy_ros.core.errors import GpuError
from vla_policy_ros.gpu import nvrtc
from vla_policy_ros.gpu.nvrtc import KernelCache, compile_cubin, read_kernel

ARCHITECTURES = [
    'sm_87',
    'sm_89',
    'sm_90',
    'sm_110',
    'sm_120',
]  # Orin, Ada, Hopper, Thor, Blackwell
ELF = b'\x7fELF'


@pytest.fixture
def cache(tmp_path):
    return KernelCache(tmp_path / 'deep' / 'kernels')


@pytest.fixture
def compilations(monkeypatch):
    """Names of the sources that are compiled; the code tells one compilation from the next."""
    names = []

    def fake(source, name, *, arch, defines, headers):
        names.append(name)
        return f'code {len(names)}'.encode()

    monkeypatch.setattr(nvrtc, 'compile_cubin', fake)
    return names


@pytest.mark.nvrtc
@pytest.mark.parametrize('arch', ARCHITECTURES)
@pytest.mark.parametrize(
    ('name', 'defines'),
    [
        ('noise', {}),
        ('denoise', {'TIME': 'float'}),
        ('denoise', {'TIME': 'long long'}),
        ('guidance', {}),
    ],
)
def test_our_kernels_compile_for_every_target(name, defines, arch):
    source, headers = read_kernel(name)
    cubin = compile_cubin(source, name, arch=arch, defines=defines, headers=headers)
    assert cubin.startswith(ELF)


@pytest.mark.nvrtc
def test_headers_are_given_to_the_compiler():
    source = '#include "two.h"\nextern "C" __global__ void one(int *x) { *x = TWO; }'
    compile_cubin(source, 'one', arch='sm_90', defines={}, headers={'two.h': '#define TWO 2'})


@pytest.mark.nvrtc
def test_an_error_in_the_source_shows_the_compilers_words():
    with pytest.raises(GpuError, match=r'(?s)broken\.cu.*sm_90.*nowhere') as caught:
        compile_cubin(
            'extern "C" __global__ void f() { nowhere(); }',
            'broken',
            arch='sm_90',
            defines={},
            headers={},
        )
    assert caught.value.code == 'compile_failed'


@pytest.mark.nvrtc
def test_an_architecture_that_the_compiler_does_not_know_is_named():
    with pytest.raises(GpuError, match='sm_999') as caught:
        compile_cubin('', 'empty', arch='sm_999', defines={}, headers={})
    assert caught.value.code == 'compile_failed'
    assert 'update NVRTC' in caught.value.next_step


@pytest.mark.nvrtc
@pytest.mark.parametrize('error', [ImportError('no cuda'), RuntimeError('no libnvrtc.so.13')])
def test_a_missing_compiler_is_told_with_the_remedy(monkeypatch, error):
    from cuda.bindings import nvrtc as library

    def fail():
        raise error

    monkeypatch.setattr(library, 'nvrtcVersion', fail)
    with pytest.raises(GpuError, match='nvidia-cuda-nvrtc') as caught:
        compile_cubin('', 'empty', arch='sm_90', defines={}, headers={})
    assert caught.value.code == 'no_compiler'
    assert caught.value.got == str(error)


def test_a_kernel_is_compiled_once(cache, compilations):
    first = cache.load('noise', arch='sm_90', defines={})
    assert cache.load('noise', arch='sm_90', defines={}) == first
    assert compilations == ['noise']


def test_every_part_of_the_variant_counts(cache, compilations, monkeypatch):
    def load():
        cache.load('denoise', arch='sm_90', defines={'TIME': 'float'})

    load()
    cache.load('denoise', arch='sm_87', defines={'TIME': 'float'})
    cache.load('denoise', arch='sm_90', defines={'TIME': 'long long'})
    cache.load('noise', arch='sm_90', defines={'TIME': 'float'})
    source, headers = read_kernel('denoise')
    for text, beside in (
        (source + ' ', headers),
        (source, {'new.h': ''}),
        (source, {'new.h': ' '}),
    ):
        monkeypatch.setattr(nvrtc, 'read_kernel', lambda _, t=text, b=beside: (t, b))
        load()
        load()
    assert len(compilations) == 7


def test_a_damaged_file_is_compiled_again(cache, compilations, tmp_path):
    cache.load('noise', arch='sm_90', defines={})
    (file,) = tmp_path.rglob('*.cubin')
    for damage in (b'', b'short', file.read_bytes()[:-1], file.read_bytes() + b'x'):
        file.write_bytes(damage)
        code = cache.load('noise', arch='sm_90', defines={})
        assert cache.load('noise', arch='sm_90', defines={}) == code
    assert len(compilations) == 5
    assert list(tmp_path.rglob('noise*')) == [file]


def test_a_folder_that_cannot_be_written_costs_a_compilation_only(tmp_path, compilations):
    (tmp_path / 'file').write_text('in the way')
    cache = KernelCache(tmp_path / 'file' / 'kernels')
    assert cache.load('noise', arch='sm_90', defines={}) == b'code 1'
    assert cache.load('noise', arch='sm_90', defines={}) == b'code 2'


@pytest.mark.nvrtc
def test_a_warm_cache_needs_no_compiler(cache, tmp_path):
    cubin = cache.load('noise', arch='sm_90', defines={})
    script = (
        'import sys, pathlib\n'
        'sys.modules["cuda"] = None\n'
        'from vla_policy_ros.gpu.nvrtc import KernelCache\n'
        f'cache = KernelCache(pathlib.Path({str(tmp_path / "deep" / "kernels")!r}))\n'
        'print(len(cache.load("noise", arch="sm_90", defines={})))\n'
    )
    run = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) == len(cubin)


def test_the_cache_lies_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder('kernels') == tmp_path / 'vla_policy_ros' / 'kernels'
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert cache_folder('kernels') == tmp_path / 'home' / '.cache' / 'vla_policy_ros' / 'kernels'


def test_headers_are_found_through_headers(monkeypatch, tmp_path):
    kernels = tmp_path / 'kernels'
    kernels.mkdir()
    (kernels / 'a.cu').write_text('#include "b.h"\n')
    (kernels / 'b.h').write_text('#pragma once\n#include "c.h"\n#include "b.h"\n')
    (kernels / 'c.h').write_text('')
    (kernels / 'host.h').write_text('')
    monkeypatch.setattr(nvrtc.resources, 'files', lambda package: tmp_path)
    assert sorted(read_kernel('a')[1]) == ['b.h', 'c.h']
