// The matrix products of attention: C[R x N] (+)= A[R x depth] B[depth x N] in float32, B's rows as vectors and A's elements
// broadcast, so that no sum runs across lanes. R x C vectors of accumulators stay in registers: 6 x 2 of 16 with AVX2 (2 of B and
// one of A beside them), 8 x 2 of 32 with AVX-512; few rows take 4 columns, or the latency of the multiply-adds would show.

constexpr int KEY_TILE = 32, MAX_WIDTH = 256;
constexpr int MAX_BLOCK_ROWS = LANES == 16 ? 8 : 6;

template <int R, int C>
KC_INLINE void multiply_block(const float *a, int a_step, int a_stride, const float *b, int b_stride, int depth, float *c, int c_stride,
                              bool accumulate) {
    Floats sums[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) sums[r][j] = accumulate ? load<Floats>(c + r * c_stride + j * LANES) : Floats{};
    for (int k = 0; k < depth; k++, a += a_step, b += b_stride) {
        Floats columns[C];
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) columns[j] = load<Floats>(b + j * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Floats element = splat(a[r * a_stride]);
#pragma GCC unroll 4
            for (int j = 0; j < C; j++) sums[r][j] += element * columns[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) store(c + r * c_stride + j * LANES, sums[r][j]);
}

template <int R>
KC_INLINE void multiply_columns(const float *a, int a_step, int a_stride, const float *b, int b_stride, int depth, float *c, int c_stride,
                                int columns, bool accumulate) {
    int n = 0;
    if constexpr (R <= 3)
        for (; n + 4 * LANES <= columns; n += 4 * LANES)
            multiply_block<R, 4>(a, a_step, a_stride, b + n, b_stride, depth, c + n, c_stride, accumulate);
    for (; n + 2 * LANES <= columns; n += 2 * LANES)
        multiply_block<R, 2>(a, a_step, a_stride, b + n, b_stride, depth, c + n, c_stride, accumulate);
    for (; n < columns; n += LANES) multiply_block<R, 1>(a, a_step, a_stride, b + n, b_stride, depth, c + n, c_stride, accumulate);
}

// Rows of scores: A is a block of R queries, interleaved [depth][R].
template <int R> void score_rows(const float *q, const float *keys, int width, float *scores, int columns) {
    multiply_columns<R>(q, R, 1, keys, KEY_TILE, width, scores, KEY_TILE, columns, false);
}

// Rows of output: A are R rows of probabilities.
template <int R> void value_rows(const float *p, const float *values, int keys, float *out, int width) {
    multiply_columns<R>(p, 1, KEY_TILE, values, width, keys, out, width, width, true);
}

typedef void (*RowsProduct)(const float *a, const float *b, int depth_or_width, float *c, int columns_or_width);

// Entry r - 1 is the product of r rows; blocks never have more than MAX_BLOCK_ROWS.
template <int... R> struct RowsProducts {
    static constexpr RowsProduct scores[] = {score_rows<R>...}, values[] = {value_rows<R>...};
};
#if defined(KC_ISA_AVX512VNNI)
typedef RowsProducts<1, 2, 3, 4, 5, 6, 7, 8> Products;
#else
typedef RowsProducts<1, 2, 3, 4, 5, 6> Products;
#endif
