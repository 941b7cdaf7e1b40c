// SPDX-License-Identifier: Apache-2.0
// Lets a C++ compiler build a kernel source and run it on the host, one thread of the grid after another. For tests
// only: NVRTC never sees this file. A kernel that is to run here uses no shared memory and no barrier, and takes no
// standard header (NVRTC has none): write `unsigned char`, not `uint8_t`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
    unsigned int x, y, z;
};
using dim3 = uint3;

static thread_local uint3 threadIdx, blockIdx;
static thread_local dim3 blockDim, gridDim;

using std::max;
using std::min;

template <typename T>
inline T __ldg(const T *address) {
    return *address;
}

inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>((static_cast<unsigned long long>(a) * b) >> 32);
}

struct alignas(16) int4 {
    int x, y, z, w;
};

inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
    return static_cast<unsigned int>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31));
}

inline unsigned int __byte_perm(unsigned int low, unsigned int high, unsigned int selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(high) << 32 | low;
    unsigned int picked = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned int byte = bytes >> 8 * (selector >> 4 * i & 7) & 255;
        picked |= byte << 8 * i;
    }
    return picked;
}

// What kernels/preprocess.cu takes from the device in assembler. A GPU's sums wrap around, so they are unsigned here.
template <typename Weight>
inline int add_products(unsigned int levels, int weights, int sum, int count) {
    unsigned int total = sum;
    for (int i = 0; i < count; ++i)
        total += static_cast<Weight>(weights >> 8 * sizeof(Weight) * i) * static_cast<int>(levels >> 8 * i & 255);
    return static_cast<int>(total);
}

inline int dot_lower(int weights, unsigned int levels, int sum) {
    return add_products<short>(levels, weights, sum, 2);
}

inline int dot_upper(int weights, unsigned int levels, int sum) {
    return add_products<short>(levels >> 16, weights, sum, 2);
}

inline int dot_bytes(unsigned int levels, int weights, int sum) {
    return add_products<signed char>(levels, weights, sum, 4);
}

inline unsigned int pack_clipped(int a, int b, int c, int d) {
    unsigned int word = 0;
    for (const int level : {d, c, b, a}) word = word << 8 | static_cast<unsigned int>(min(max(level, 0), 255));
    return word;
}

// The host's compiler is told not to fuse products and sums (-ffp-contract=off).
inline float __fmul_rn(float a, float b) {
    return a * b;
}

inline float __fadd_rn(float a, float b) {
    return a + b;
}

inline unsigned int __float_as_uint(float value) {
    unsigned int bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

inline float __uint_as_float(unsigned int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

namespace host {

template <typename T>
T read(const void *address) {
    T value;
    std::memcpy(&value, address, sizeof(T));
    return value;
}

template <typename... Types, std::size_t... Index>
std::tuple<Types...> read_all(void *const *arguments, std::index_sequence<Index...>) {
    return std::tuple<Types...>{read<Types>(arguments[Index])...};
}

// Runs the whole grid; `arguments` holds the address of every argument, as cuLaunchKernel takes them.
template <typename... Types>
void launch(void (*kernel)(Types...), const dim3 &grid, const dim3 &block, void *const *arguments) {
    const auto values = read_all<Types...>(arguments, std::index_sequence_for<Types...>{});
    gridDim = grid;
    blockDim = block;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
                for (threadIdx.z = 0; threadIdx.z < block.z; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x)
                            std::apply(kernel, values);
}

// Writes the offset of every argument in a packed buffer and returns their number; the last entry is the whole size.
template <typename... Types>
unsigned int layout(void (*)(Types...), unsigned int *offsets) {
    unsigned int end = 0, count = 0;
    const auto place = [&](unsigned int size, unsigned int alignment) {
        offsets[count++] = end = (end + alignment - 1) / alignment * alignment;
        end += size;
    };
    (place(sizeof(Types), alignof(Types)), ...);
    offsets[count] = end;
    return count;
}

}  // namespace host
