// The parts of attention.cuh put together: out bf16 [sequences][heads][width], 0 for a context without tokens.
#include "attention.cuh"

constexpr int COMBINE_THREADS = 128;

KC_KERNEL(COMBINE_THREADS)
attention_combine(const float *partial, const float *stats, const int *contexts, int heads, int splits, int width, u16 *out) {
    const long long sequence = blockIdx.y, row = sequence * heads + blockIdx.x;
    const int context = contexts[sequence], part = part_of(context), used = (context + part - 1) / part;
    const float *parts = stats + row * splits * 2;
    float highest = -INFINITY, total = 0;
    for (int s = 0; s < used; s++) highest = fmaxf(highest, parts[2 * s]);
    for (int s = 0; s < used; s++) total += parts[2 * s + 1] * shrink(parts[2 * s], highest);
    for (int column = threadIdx.x; column < width; column += COMBINE_THREADS) {
        float sum = 0;
        for (int s = 0; s < used; s++) sum += partial[(row * splits + s) * width + column] * shrink(parts[2 * s], highest);
        out[row * width + column] = to_bf16(used > 0 ? sum / total : 0.0f);
    }
}
