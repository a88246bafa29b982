// out[m][r] = sum over c of w[r][c] * x[m][c] (+ bias[r]) for 1 to 4 tokens and weights of 4 bits in groups of 32 columns.
//
// x, bias, out: bf16, x [tokens][columns], out [tokens][rows]. quants: [rows][columns / 32][16 bytes], column 2i in the low and
// 2i + 1 in the high half of byte i, as compressed-tensors stores them: K2's tensors are read where they lie. Per format:
//   INT4: w = (q - 8) * scale,             scales bf16 [rows][columns / 32]
//   Q4_0: w = (q - 8) * scale,             scales f16  [rows][columns / 32]
//   Q4_K: w = d * s * q - dmin * m,        scales 16 bytes per 256 columns: d f16, dmin f16, s and m of 8 groups in 6 bits as GGUF
// Limits: columns a multiple of 32 (Q4_K: 256), at most MAX_SHARED / (2 * tokens) or in tiles of that.
//
// Why this form. A lane owns whole groups: one load of 16 bytes is 32 weights of one scale, a warp reads 512 contiguous bytes of a
// row, and the offset of 8 (or the minimum) is taken once per group from the sum of x, computed when x is put into shared memory.
// A nibble becomes a float by one byte permutation: 0x43 above it is 128 + q exactly. ROWS rows per warp share the reads of x.
// Chunks of x are stored rotated by their group, so that 8 lanes that read the same chunk of 8 groups meet in no bank.
#include "device.cuh"

enum { INT4, Q4_0, Q4_K };

constexpr int GEMV_THREADS = 128, GEMV_WARPS = GEMV_THREADS / WARP, ROWS = 2;

struct Scales {
    float scale, offset;  // w = scale * q - offset
};

template <int FORMAT> KC_DEVICE Scales scales_of(const void *scales, long long row, int groups, int group) {
    if (FORMAT == INT4 || FORMAT == Q4_0) {
        const u16 bits = ((const u16 *)scales)[row * groups + group];
        const float scale = FORMAT == INT4 ? bf16_value(bits) : half_value(bits);
        return {scale, scale * 8.0f};
    }
    const uint4 block = ((const uint4 *)scales)[row * (groups / 8) + group / 8];
    // Bytes 0-3: s of groups 0-3 and the upper bits of s of 4-7; 4-7: the same of m; 8-11: lower halves of s, then of m of 4-7.
    const int j = group % 4, shift = 8 * j;
    const u32 s = block.y >> shift & 255, m = block.z >> shift & 255, low = block.w >> shift & 255;
    const bool late = group % 8 >= 4;
    const u32 scale = late ? (low & 15) | s >> 6 << 4 : s & 63, minimum = late ? low >> 4 | m >> 6 << 4 : m & 63;
    return {half_value((u16)block.x) * (float)scale, half_value((u16)(block.x >> 16)) * (float)minimum};
}

// Place of chunk c (8 columns) of a group among the uint4 of its row of x.
KC_DEVICE int chunk_place(int group, int c) { return group * 4 + (c ^ (group >> 1 & 3)); }

template <int TOKENS> KC_DEVICE void load_x(const uint4 *x, int groups, int first, int count, uint4 *values, float *sums) {
    for (int i = threadIdx.x; i < TOKENS * count; i += GEMV_THREADS) {
        const int token = i / count, group = i % count;
        const uint4 *from = x + ((long long)token * groups + first + group) * 4;
        float sum = 0;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const uint4 v = from[c];
            values[token * count * 4 + chunk_place(group, c)] = v;
#pragma unroll
            for (int j = 0; j < 4; j++) sum += low_bf16(word_of(v, j)) + high_bf16(word_of(v, j));
        }
        sums[token * count + group] = sum;
    }
}

// 128 + the nibble of one byte of eight that hold one nibble each.
KC_DEVICE float biased(u32 nibbles, int byte) { return as_float(choose_bytes(nibbles, 0x43000000u, 0x7044u | (u32)byte << 8)); }

template <int TOKENS> KC_DEVICE void add_word(u32 word, const float (&x)[TOKENS][8], float (&sums)[TOKENS]) {
    const u32 even = word & 0x0f0f0f0fu, odd = word >> 4 & 0x0f0f0f0fu;
#pragma unroll
    for (int b = 0; b < 4; b++) {
        const float low = biased(even, b), high = biased(odd, b);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) sums[t] += low * x[t][2 * b] + high * x[t][2 * b + 1];
    }
}

template <int TOKENS>
KC_DEVICE void add_group(const uint4 (&quants)[ROWS], const uint4 *values, int count, int group, float (&sums)[ROWS][TOKENS]) {
#pragma unroll
    for (int c = 0; c < 4; c++) {
        float x[TOKENS][8];
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const uint4 v = values[t * count * 4 + chunk_place(group, c)];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                x[t][2 * j] = low_bf16(word_of(v, j));
                x[t][2 * j + 1] = high_bf16(word_of(v, j));
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) add_word<TOKENS>(word_of(quants[r], c), x, sums[r]);
    }
}

template <int FORMAT, int TOKENS>
KC_DEVICE void multiply(const uint4 *quants, const void *scales, const uint4 *x, const u16 *bias, int rows, int columns, int tile, u16 *out) {
    KC_DYNAMIC_SHARED(values);  // TOKENS * tile * 4 chunks of x, then TOKENS * tile sums of groups
    float *group_sums = (float *)(values + TOKENS * tile * 4);
    const int groups = columns / 32, lane = threadIdx.x % WARP;
    const int first_row = (blockIdx.x * GEMV_WARPS + threadIdx.x / WARP) * ROWS;
    float totals[ROWS][TOKENS] = {};
    for (int first = 0; first < groups; first += tile) {
        const int count = min(tile, groups - first);
        if (first) block_barrier();
        load_x<TOKENS>(x, groups, first, count, values, group_sums);
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
#pragma unroll
                for (int t = 0; t < TOKENS; t++) {
                    const float sum = group_sums[t * count + group];
                    totals[r][t] += s.scale * (sums[r][t] - 128.0f * sum) - s.offset * sum;
                }
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
    KC_KERNEL(GEMV_THREADS)                                                                                                             \
    gemv_##FORMAT##_##TOKENS(const uint4 *quants, const void *scales, const uint4 *x, const u16 *bias, int rows, int columns, int tile, \
                             u16 *out) {                                                                                               \
        multiply<FORMAT, TOKENS>(quants, scales, x, bias, rows, columns, tile, out);                                                    \
    }
#define GEMV_OF(FORMAT) GEMV(FORMAT, 1) GEMV(FORMAT, 2) GEMV(FORMAT, 3) GEMV(FORMAT, 4)
GEMV_OF(INT4)
GEMV_OF(Q4_0)
GEMV_OF(Q4_K)
