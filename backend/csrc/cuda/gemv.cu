// out[m][r] = sum over c of w[r][c] * x[m][c] (+ bias[r]) for 1 to 4 tokens and the 4-bit weights of int4.cuh.
//
// x, bias, out: bf16, x [tokens][columns], out [tokens][rows].
// Limits: columns a multiple of 32 (Q4_K: 256); x goes through shared memory in tiles of `tile` groups.
#include "int4.cuh"

template <int FORMAT, int TOKENS>
KC_DEVICE void multiply(const uint4 *quants, const void *scales, const uint4 *x, const u16 *bias, int rows, int columns, int tile, u16 *out) {
    KC_DYNAMIC_SHARED(values);  // TOKENS * tile * 4 chunks of x, then TOKENS * tile sums of groups
    float *group_sums = (float *)(values + TOKENS * tile * 4);
    const int groups = columns / 32, lane = threadIdx.x % WARP;
    const int first_row = (blockIdx.x * INT4_WARPS + threadIdx.x / WARP) * ROWS;
    const uint4 *tokens[TOKENS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) tokens[t] = x + (long long)t * groups * 4;
    float totals[ROWS][TOKENS] = {};
    for (int first = 0; first < groups; first += tile) {
        const int count = min(tile, groups - first);
        if (first) block_barrier();
        load_x<TOKENS>(tokens, first, count, values, group_sums);
        block_barrier();
        for (int group = lane; group < count; group += WARP) {
            uint4 words[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++)  // rows past the last repeat it and are not stored
                words[r] = load_stream(quants + (long long)min(first_row + r, rows - 1) * groups + first + group);
            float sums[ROWS][TOKENS] = {};
            add_group<TOKENS>(words, values, count, group, sums);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const Scales s = scales_of<FORMAT>(scales, min(first_row + r, rows - 1), groups, first + group);
                add_scaled<TOKENS>(sums[r], s, group_sums, count, group, totals[r]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const float total = warp_sum(totals[r][t]);
            const int row = first_row + r;
            if (lane == 0 && row < rows) out[(long long)t * rows + row] = to_bf16(total + (bias ? bf16_value(bias[row]) : 0.0f));
        }
}

#define GEMV(FORMAT, TOKENS)                                                                                                            \
    KC_KERNEL(INT4_THREADS)                                                                                                             \
    gemv_##FORMAT##_##TOKENS(const uint4 *quants, const void *scales, const uint4 *x, const u16 *bias, int rows, int columns, int tile, \
                             u16 *out) {                                                                                               \
        multiply<FORMAT, TOKENS>(quants, scales, x, bias, rows, columns, tile, out);                                                    \
    }
#define GEMV_OF(FORMAT) GEMV(FORMAT, 1) GEMV(FORMAT, 2) GEMV(FORMAT, 3) GEMV(FORMAT, 4)
GEMV_OF(INT4)
GEMV_OF(Q4_0)
GEMV_OF(Q4_K)
