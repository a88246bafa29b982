// out = x / sqrt(mean(x^2) + eps) * weight, per row; with a residual: residual += x first and the sum, as it was stored, is normed.
//
// x, residual, weight, out: bf16, rows contiguous, width a multiple of 8. One block per row; sums in float32.
// Why 16 bytes a thread: a row of 7168 is 896 loads, three or four a thread, all under way before the first is used.
#include "device.cuh"

constexpr int NORM_THREADS = 256;

KC_KERNEL(NORM_THREADS) rms_norm(const uint4 *x, uint4 *residual, const uint4 *weight, float eps, int width, uint4 *out) {
    const int chunks = width / 8;
    const long long row = (long long)blockIdx.x * chunks;
    float squares = 0;
    for (int i = threadIdx.x; i < chunks; i += NORM_THREADS) {
        uint4 v = x[row + i];
        if (residual) {
            const uint4 r = residual[row + i];
            v.x = bf16_pair(low_bf16(v.x) + low_bf16(r.x), high_bf16(v.x) + high_bf16(r.x));
            v.y = bf16_pair(low_bf16(v.y) + low_bf16(r.y), high_bf16(v.y) + high_bf16(r.y));
            v.z = bf16_pair(low_bf16(v.z) + low_bf16(r.z), high_bf16(v.z) + high_bf16(r.z));
            v.w = bf16_pair(low_bf16(v.w) + low_bf16(r.w), high_bf16(v.w) + high_bf16(r.w));
            residual[row + i] = v;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float a = low_bf16(word_of(v, j)), b = high_bf16(word_of(v, j));
            squares += a * a + b * b;
        }
    }
    const float factor = 1.0f / sqrtf(block_sum<NORM_THREADS / WARP>(squares) / (float)width + eps);
    // Each thread reads again what it wrote itself: from the cache, and without a barrier.
    const uint4 *normed = residual ? residual : x;
    for (int i = threadIdx.x; i < chunks; i += NORM_THREADS) {
        const uint4 v = normed[row + i], w = weight[i];
        uint4 result;
        result.x = bf16_pair(low_bf16(v.x) * factor * low_bf16(w.x), high_bf16(v.x) * factor * high_bf16(w.x));
        result.y = bf16_pair(low_bf16(v.y) * factor * low_bf16(w.y), high_bf16(v.y) * factor * high_bf16(w.y));
        result.z = bf16_pair(low_bf16(v.z) * factor * low_bf16(w.z), high_bf16(v.z) * factor * high_bf16(w.z));
        result.w = bf16_pair(low_bf16(v.w) * factor * low_bf16(w.w), high_bf16(v.w) * factor * high_bf16(w.w));
        out[row + i] = result;
    }
}
