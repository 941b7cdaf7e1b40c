# SPDX-License-Identifier: Apache-2.0
import numpy as np

from vla_policy_ros.evaluation.process_memory import ProcessMemory, read_process_memory


def test_what_the_kernel_says(tmp_path):
    path = tmp_path / 'status'
    path.write_text('Name:\tpython: 3\nVmHWM:\t  3000 kB\nVmRSS:\t  2000 kB\nThreads:\t1\n')
    assert read_process_memory(path) == ProcessMemory(2000 << 10, 3000 << 10)


def test_the_peak_is_never_below_what_is_held(tmp_path):
    path = tmp_path / 'status'
    path.write_text('VmHWM:\t  1999 kB\nVmRSS:\t  2000 kB\n')
    assert read_process_memory(path).peak_bytes == 2000 << 10
    path.write_text('VmRSS:\t  2000 kB\n')
    assert read_process_memory(path).peak_bytes == 2000 << 10


def test_nobody_says(tmp_path):
    assert read_process_memory(tmp_path / 'none') is None
    (tmp_path / 'status').write_text('Name:\tkernel thread\n')
    assert read_process_memory(tmp_path / 'status') is None


def test_this_process():
    before = read_process_memory()
    held = np.ones(64 << 20, np.uint8)  # touched, so that it is resident
    after = read_process_memory()
    assert after.resident_bytes - before.resident_bytes > held.nbytes // 2
    assert after.peak_bytes >= after.resident_bytes
