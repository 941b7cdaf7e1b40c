// SPDX-License-Identifier: Apache-2.0
// N(0, 1) noise, the same numbers as bundle/noise.py: Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller.
// One thread makes four numbers.

static __device__ __forceinline__ void philox(unsigned int counter[4], unsigned int key0, unsigned int key1) {
    for (int round = 0; round < 10; ++round) {
        const unsigned int high0 = __umulhi(0xD2511F53u, counter[0]);
        const unsigned int low0 = 0xD2511F53u * counter[0];
        const unsigned int high1 = __umulhi(0xCD9E8D57u, counter[2]);
        const unsigned int low1 = 0xCD9E8D57u * counter[2];
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[3] = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// key: seed and stamp, in device memory, so that a captured graph is replayed with the stamp of its turn.
extern "C" __global__ void draw_noise(const unsigned long long *key, float *out, int count) {
    const unsigned int group = blockIdx.x * blockDim.x + threadIdx.x;
    if (group * 4ull >= static_cast<unsigned long long>(count)) return;
    const unsigned long long seed = key[0], stamp = key[1];
    unsigned int words[4] = {group, 0u, static_cast<unsigned int>(stamp), static_cast<unsigned int>(stamp >> 32)};
    philox(words, static_cast<unsigned int>(seed), static_cast<unsigned int>(seed >> 32));
    float values[4];
    for (int pair = 0; pair < 4; pair += 2) {
        // 24 bits, which a float holds exactly; the first in (0, 1], so that its logarithm is finite.
        const float uniform = (static_cast<float>(words[pair] >> 8) + 1.0f) * 5.9604644775390625e-8f;
        const float angle = static_cast<float>(words[pair + 1] >> 8) * 3.7450703871400037e-7f;  // 2 pi / 2^24
        const float radius = sqrtf(-2.0f * logf(uniform));
        values[pair] = radius * cosf(angle);
        values[pair + 1] = radius * sinf(angle);
    }
    for (int index = 0; index < 4; ++index)
        if (static_cast<int>(group) * 4 + index < count) out[group * 4 + index] = values[index];
}
