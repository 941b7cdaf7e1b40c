# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ros

COUNT_HEAPS = """
import ctypes, sys, threading
from vla_policy_ros.ros.process import tune_allocator

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p

def write_heaps(path):
    file = ctypes.c_void_p(libc.fopen(path.encode(), b"w"))
    assert libc.malloc_info(0, file) == 0
    libc.fclose(file)

assert tune_allocator()
write_heaps(sys.argv[1])  # libraries may have started threads while they were imported
everyone = threading.Barrier(9)

def hold():
    libc.malloc(1 << 20)
    everyone.wait()
    everyone.wait()

for _ in range(8):
    threading.Thread(target=hold).start()
everyone.wait()
write_heaps(sys.argv[2])
everyone.wait()
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='malloc_info is glibc')
def test_threads_get_no_heap_of_their_own(tmp_path):
    """With a heap each, threads that come and go leave holes of an image's size behind, and a long replay grows."""
    paths = [tmp_path / 'before.xml', tmp_path / 'after.xml']
    subprocess.run([sys.executable, '-c', COUNT_HEAPS, *map(str, paths)], check=True)
    before, after = (path.read_text().count('<heap ') for path in paths)
    assert after == before
