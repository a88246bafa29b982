// Decoding attention over the pages of kernels/pages.py, as float16: what both kinds share.
//
// A context is cut into at most MAX_SPLITS parts of at least MIN_PART tokens, by its own length alone, so that a row's numbers do not
// depend on what is computed with it. Each part leaves, per query head, the highest score (times log2 e), the sum of the weights
// relative to it and the weighted values; combine.cu puts the parts together. Blocks of parts past a context end at once: the grid
// is made for the longest context that the block table has room for, and a graph of launches stays valid while contexts grow.
#pragma once
#include "device.cuh"

constexpr int MAX_SPLITS = 64, MIN_PART = 256, TILE = 64;

KC_DEVICE int part_of(int context) {
    const int tokens = (context + MAX_SPLITS - 1) / MAX_SPLITS;
    return max(MIN_PART, (tokens + TILE - 1) / TILE * TILE);
}

// The halves of two words as the pairs that a matrix instruction wants: column j of 8 from two rows of 16 bytes each.
KC_DEVICE u32 column_pair(const uint4 &first, const uint4 &second, int j) {
    return choose_bytes(word_of(first, j / 2), word_of(second, j / 2), j % 2 ? 0x7632 : 0x5410);
}

// Over the four lanes that hold the columns of one row of a matrix product.
KC_DEVICE float quad_max(float value) {
    value = fmaxf(value, shuffle_xor(value, 1));
    return fmaxf(value, shuffle_xor(value, 2));
}

KC_DEVICE float quad_sum(float value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}

// By what earlier sums shrink when the highest score grows; both may still be -infinity.
KC_DEVICE float shrink(float before, float now) { return before == now ? 1.0f : exp2f(before - now); }
