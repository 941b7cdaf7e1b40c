// SPDX-License-Identifier: Apache-2.0
// One step of a denoise loop; the rule and the order of operations of policies/loops.py, so the numbers are the same.
// TIME is the element type of the time step: float or long long.

// The intrinsics keep the compiler from fusing a product and a sum, which would round once less than the CPU does.
static __device__ __forceinline__ float add_product(float total, float factor, float value) {
    return factor == 0.0f ? total : __fadd_rn(total, __fmul_rn(value, factor));
}

// Not fminf and fmaxf, which would turn a NaN into a limit.
static __device__ __forceinline__ float clip(float value, float limit) {
    return value > limit ? limit : value < -limit ? -limit : value;
}

// Sets the sample to the rows of the prefix (null for none) and to the first noise tensor after them, and the first time.
extern "C" __global__ void begin_loop(float *sample, const float *noise, int count, TIME *timestep, TIME time,
                                      const float *prefix, const int *num_rows, int width) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index == 0) *timestep = time;
    if (index < count) sample[index] = prefix && index < *num_rows * width ? prefix[index] : noise[index];
}

// Takes one step, and writes the time of the next one. A limit of 0 does not clip. Gains are one per row, null for none.
extern "C" __global__ void take_step(float *sample, const float *prediction, const float *noise, int count,
                                     float clean_x, float clean_p, float limit, float to_clean, float to_x, float to_p,
                                     float to_noise, TIME *timestep, TIME next_time, const float *gains, int width) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index == 0) *timestep = next_time;
    if (index >= count) return;
    const float x = sample[index], p = prediction[index];
    float total = __fmul_rn(x, to_x);
    if (to_clean != 0.0f) {
        float clean = add_product(__fmul_rn(x, clean_x), clean_p, p);
        if (limit != 0.0f) clean = clip(clean, limit);
        total = add_product(total, to_clean, clean);
    }
    if (to_p != 0.0f) {
        const float term = __fmul_rn(p, to_p);
        total = __fadd_rn(total, gains ? __fmul_rn(term, gains[index / width]) : term);
    }
    if (to_noise != 0.0f) total = add_product(total, to_noise, noise[index]);
    sample[index] = total;
}
