# SPDX-License-Identifier: Apache-2.0
"""As much of TensorRT's Python interface as a plan of the doubler needs, on a `HostDevice`: y = x + x."""

from __future__ import annotations

import ctypes
from enum import Enum, IntEnum, auto
from types import SimpleNamespace

import numpy as np

PLAN = b'a plan of the doubler'
KERNELS = b'compiled kernels'
WORKSPACE_BYTES = 512
__version__ = '10.6.0'


class ILogger:
    ERROR = 1
    WARNING = 2


class TensorIOMode(Enum):
    INPUT = auto()
    OUTPUT = auto()


class TensorLocation(Enum):
    DEVICE = auto()
    HOST = auto()


class DataType(Enum):
    FLOAT = auto()
    INT4 = auto()


class ExecutionContextAllocationStrategy(Enum):
    STATIC = auto()
    USER_MANAGED = auto()


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class FakeTensorRT:
    """Stands in for the module; attributes that a test sets change what it does.

    Args:
        device: The host device that runs belong to.
    """

    __version__ = __version__
    ILogger = ILogger
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag

    def __init__(self, device):
        self.device = device
        self.location = TensorLocation.DEVICE
        self.dtype = DataType.FLOAT
        self.refuses = ''  # name of the method that returns a failure
        self.contexts = []
        self.runtimes = []

    def Runtime(self, logger):  # noqa: N802 - the library's name
        self.runtimes.append(_Runtime(self, logger))
        return self.runtimes[-1]

    def fails(self, method, logger, text):
        if self.refuses == method:
            logger.log(ILogger.ERROR, text)
        return self.refuses == method


class FakeRtx(FakeTensorRT):
    """The same with what TensorRT-RTX has beside: kernels are compiled at run time and can be kept."""

    IRuntimeCache = object
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER='EAGER')


class _RuntimeCache:
    known = None

    def deserialize(self, content):
        self.known = content

    def serialize(self):
        return KERNELS


class _RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = None
    cache = None
    strategy = None

    def create_runtime_cache(self):
        return _RuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class _Runtime:
    engine_host_code_allowed = False

    def __init__(self, trt, logger):
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, content):
        if bytes(content) == PLAN:
            return _Engine(self._trt, self._logger)
        self._logger.log(ILogger.ERROR, 'magicTag does not match')
        return None


class _Engine:
    num_io_tensors = 2
    device_memory_size_v2 = WORKSPACE_BYTES

    def __init__(self, trt, logger):
        self._trt, self._logger = trt, logger

    def get_tensor_name(self, index):
        return 'xy'[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == 'x' else TensorIOMode.OUTPUT

    def get_tensor_location(self, name):
        return self._trt.location

    def get_tensor_dtype(self, name):
        return self._trt.dtype

    def get_tensor_shape(self, name):
        return (-1, 3)

    def get_tensor_profile_shape(self, name, index):
        return [(1, 3), (2, 3), (4, 3)]

    def create_runtime_config(self):
        return _RuntimeConfig()

    def create_execution_context(self, how):
        if self._trt.fails('create_execution_context', self._logger, 'out of memory'):
            return None
        context = _Context(self._trt, self._logger, how)
        self._trt.contexts.append(context)
        return context


class _Context:
    def __init__(self, trt, logger, how):
        self._trt, self._logger = trt, logger
        self.strategy = how
        if isinstance(how, _RuntimeConfig):
            self.strategy = how.strategy
            self.cache = how.cache
            self.specialization = how.dynamic_shapes_kernel_specialization_strategy
        self.workspace = None
        self._addresses = {}
        self._shape = None

    def set_device_memory(self, address, size):
        self.workspace = address, size

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return not self._trt.fails('set_tensor_address', self._logger, 'no such tensor')

    def set_input_shape(self, name, shape):
        self._shape = shape
        return not self._trt.fails('set_input_shape', self._logger, 'wrong shape')

    def infer_shapes(self):
        return ['x'] if self._trt.refuses == 'infer_shapes' else []

    def get_tensor_shape(self, name):
        return self._shape

    def execute_async_v3(self, stream):
        if self._trt.fails('execute_async_v3', self._logger, 'an illegal address'):
            return False
        self._trt.device.submit('runs', stream, self._run)
        return True

    def _run(self):
        x, y = (_floats(self._addresses[name], self._shape) for name in 'xy')
        np.add(x, x, out=y)


def _floats(address, shape):
    pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, shape)
