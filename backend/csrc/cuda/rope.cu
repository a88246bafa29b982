// Rotary embedding in place: (a, b) -> (a cos - b sin, b cos + a sin) for the pairs of each head's first `rotary` values.
// Pairs are (i, i + rotary/2), or (2i, 2i+1) when interleaved; cos and sin are rows of a table by position.
//
// q: bf16 [tokens][q_stride], of which heads * width are q's; k likewise; positions: int32 [tokens]; table: float32 [positions][rotary].
// A block per token, threads over the pairs of all its heads.
#include "device.cuh"

constexpr int ROPE_THREADS = 256;

KC_DEVICE void rotate(u16 *head, const float *cosines, int half, int pair, int interleaved) {
    u16 *first = head + (interleaved ? 2 * pair : pair), *second = first + (interleaved ? 1 : half);
    const float a = bf16_value(*first), b = bf16_value(*second), c = cosines[pair], s = cosines[half + pair];
    *first = to_bf16(a * c - b * s);
    *second = to_bf16(b * c + a * s);
}

KC_KERNEL(ROPE_THREADS)
rope(u16 *q, long long q_stride, int heads, u16 *k, long long k_stride, int kv_heads, int width, const int *positions, const float *table,
     int rotary, int interleaved) {
    const int token = blockIdx.x, half = rotary / 2, q_pairs = heads * half, pairs = q_pairs + kv_heads * half;
    const float *cosines = table + (long long)positions[token] * rotary;
    for (int i = threadIdx.x; i < pairs; i += ROPE_THREADS) {
        if (i < q_pairs)
            rotate(q + token * q_stride + (long long)(i / half) * width, cosines, half, i % half, interleaved);
        else
            rotate(k + token * k_stride + (long long)((i - q_pairs) / half) * width, cosines, half, (i - q_pairs) % half, interleaved);
    }
}
