// SPDX-License-Identifier: Apache-2.0
// Guidance of a flow-matching loop; the rule and the order of operations of policies/guidance.py, so the numbers are
// the same. The intrinsics keep the compiler from fusing a product and a sum.

// Writes the weighted distance of the expected end to the wanted rows; weights are one per row.
extern "C" __global__ void measure_error(float *error, const float *sample, const float *prediction,
                                         const float *wanted, const float *weights, int count, int width,
                                         float to_end) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const float end = __fadd_rn(sample[index], __fmul_rn(prediction[index], to_end));
    error[index] = __fmul_rn(__fadd_rn(wanted[index], -end), weights[index / width]);
}

// Turns the prediction along the error and its gradient.
extern "C" __global__ void correct_prediction(float *prediction, const float *error, const float *gradient, int count,
                                              float to_end, float strength) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const float turn = __fadd_rn(error[index], __fmul_rn(gradient[index], to_end));
    prediction[index] = __fadd_rn(prediction[index], __fmul_rn(turn, strength));
}
