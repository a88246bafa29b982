// Weights of 4 bits in groups of 32 columns, times bf16: what the kernels over them share.
//
// quants: [rows][columns / 32][16 bytes], column 2i in the low and 2i + 1 in the high half of byte i, as compressed-tensors stores
// them: K2's tensors are read where they lie. Per format:
//   INT4: w = (q - 8) * scale,             scales bf16 [rows][columns / 32]
//   Q4_0: w = (q - 8) * scale,             scales f16  [rows][columns / 32]
//   Q4_K: w = d * s * q - dmin * m,        scales 16 bytes per 256 columns: d f16, dmin f16, s and m of 8 groups in 6 bits as GGUF
//
// Why this form. A lane owns whole groups: one load of 16 bytes is 32 weights of one scale, a warp reads 512 contiguous bytes of a
// row, and the offset of 8 (or the minimum) is taken once per group from the sum of x, computed when x is put into shared memory.
// A nibble becomes a float by one byte permutation: 0x43 above it is 128 + q exactly. ROWS rows per warp share the reads of x.
// Chunks of x are stored rotated by their group, so that 8 lanes that read the same chunk of 8 groups meet in no bank.
#pragma once
#include "device.cuh"

enum { INT4, Q4_0, Q4_K };

constexpr int INT4_THREADS = 128, INT4_WARPS = INT4_THREADS / WARP, ROWS = 2;

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

// values: [TOKENS][count] groups of 4 chunks; sums: of each of these groups. rows: where the tokens' groups begin.
template <int TOKENS>
KC_DEVICE void load_x(const uint4 *const (&rows)[TOKENS], int first, int count, uint4 *values, float *sums) {
#pragma unroll
    for (int token = 0; token < TOKENS; token++)
        for (int group = threadIdx.x; group < count; group += INT4_THREADS) {
            const uint4 *from = rows[token] + (long long)(first + group) * 4;
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

// What a group adds to the sums of one row: x with its weights, of which `products` has those with 128 + q.
template <int TOKENS>
KC_DEVICE void add_scaled(const float (&products)[TOKENS], Scales s, const float *group_sums, int count, int group, float (&totals)[TOKENS]) {
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const float sum = group_sums[t * count + group];
        totals[t] += s.scale * (products[t] - 128.0f * sum) - s.offset * sum;
    }
}
