// The matrix products of attention: C[R x N] (+)= A[R x depth] B[depth x N] in float32, B's rows as vectors and A's elements
// broadcast, so that no sum runs across lanes. R x C vectors of accumulators stay in registers: 6 x 2 of 16 with AVX2 (2 of B and
// one of A beside them), 8 x 2 of 32 with AVX-512; few rows take 4 columns, or the latency of the multiply-adds would show.
//
// B comes from a *source*: `at(source, k, step, n)` are the columns n..n+LANES-1 of row k + step, where k is a multiple of
// Source::STEPS and step is below it (rows that share bytes are taken together); `ask(source, k, n)` asks for the bytes of the same
// rows and columns in the tile that comes next. An element of C is summed up in the order of k
// whatever the source, R, C and N are: a row's result does not depend on what is computed with it.

constexpr int KEY_TILE = 32, MAX_WIDTH = 256;

struct Widened {  // float32
    static constexpr int STEPS = 1;
    const float *from;
    int stride;
    KC_INLINE Floats at(const Widened &b, int k, int, int n) { return load<Floats>(b.from + k * b.stride + n); }
    KC_INLINE void ask(const Widened &, int, int) {}
};

template <int R, int C, class Source>
KC_INLINE void multiply_block(const float *a, int a_step, int a_stride, const Source &b, int n, int depth, float *c, int c_stride,
                              bool accumulate) {
    Floats sums[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) sums[r][j] = accumulate ? load<Floats>(c + r * c_stride + j * LANES) : Floats{};
    for (int k = 0; k < depth; k += Source::STEPS) {
        Source::ask(b, k, n);
#pragma GCC unroll 8
        for (int step = 0; step < Source::STEPS; step++, a += a_step) {
            Floats columns[C];
#pragma GCC unroll 4
            for (int j = 0; j < C; j++) columns[j] = Source::at(b, k, step, n + j * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const Floats element = splat(a[r * a_stride]);
#pragma GCC unroll 4
                for (int j = 0; j < C; j++) sums[r][j] += element * columns[j];
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) store(c + r * c_stride + j * LANES, sums[r][j]);
}

template <int R, class Source>
KC_INLINE void multiply_columns(const float *a, int a_step, int a_stride, const Source &b, int depth, float *c, int c_stride, int columns,
                                bool accumulate) {
    int n = 0;
    if constexpr (R <= 3)
        for (; n + 4 * LANES <= columns; n += 4 * LANES)
            multiply_block<R, 4>(a, a_step, a_stride, b, n, depth, c + n, c_stride, accumulate);
    for (; n + 2 * LANES <= columns; n += 2 * LANES)
        multiply_block<R, 2>(a, a_step, a_stride, b, n, depth, c + n, c_stride, accumulate);
    for (; n < columns; n += LANES) multiply_block<R, 1>(a, a_step, a_stride, b, n, depth, c + n, c_stride, accumulate);
}

// Rows of scores: A is a block of R queries, interleaved [depth][R].
template <int R, class Source> void score_rows(const float *q, const Source &keys, int width, float *scores, int columns) {
    multiply_columns<R>(q, R, 1, keys, width, scores, KEY_TILE, columns, false);
}

// Rows of output: A are R rows of probabilities.
template <int R, class Source> void value_rows(const float *p, const Source &values, int keys, float *out, int width) {
    multiply_columns<R>(p, 1, KEY_TILE, values, keys, out, width, width, true);
}

// Entry r - 1 is the product of r rows; blocks never have more than MAX_BLOCK_ROWS, which the number of registers decides.
template <class Source, int... R> struct ScoreTable {
    typedef void (*Product)(const float *q, const Source &keys, int width, float *scores, int columns);
    static constexpr Product of[] = {score_rows<R, Source>...};
};
template <class Source, int... R> struct ValueTable {
    typedef void (*Product)(const float *p, const Source &values, int keys, float *out, int width);
    static constexpr Product of[] = {value_rows<R, Source>...};
};
#if defined(KC_ISA_AVX512VNNI)
constexpr int MAX_BLOCK_ROWS = 8;
template <class Source> using ScoreProducts = ScoreTable<Source, 1, 2, 3, 4, 5, 6, 7, 8>;
template <class Source> using ValueProducts = ValueTable<Source, 1, 2, 3, 4, 5, 6, 7, 8>;
#else
constexpr int MAX_BLOCK_ROWS = 6;
template <class Source> using ScoreProducts = ScoreTable<Source, 1, 2, 3, 4, 5, 6>;
template <class Source> using ValueProducts = ValueTable<Source, 1, 2, 3, 4, 5, 6>;
#endif

// depth rows of `columns` columns, whole vectors of them, as float32.
template <class Source> KC_INLINE void widen_rows(Source b, int depth, int columns, float *to, int stride) {
    for (int k = 0; k < depth; k += Source::STEPS)
        for (int n = 0; n < columns; n += LANES) {
            Source::ask(b, k, n);
#pragma GCC unroll 8
            for (int step = 0; step < Source::STEPS; step++) store(to + (k + step) * stride + n, Source::at(b, k, step, n));
        }
}
