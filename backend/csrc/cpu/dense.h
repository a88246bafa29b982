// y = W x + b for F32, F16 and BF16 weights: plain dot products in float32 over rows as they lie in the file.
//
// A strip of DENSE_ROWS rows x DENSE_STRIP columns is widened once into the first-level cache (8 KB) and multiplied with
// every token, four rows at a time.

constexpr int DENSE_ROWS = 4, DENSE_STRIP = 512;
constexpr int DENSE_AHEAD = 1024;  // bytes of a row

struct DenseProduct {  // one row group times a run of tokens
    const Part *part;
    int group;
    const float *x;
    int tokens;
    const float *bias;
    float *out;
    int out_stride;
};

KC_INLINE void widen_row(int format, const uint8_t *from, int count, float *to) {
    int i = 0;
    if (format == F32) {
        __builtin_memcpy(to, from, (size_t)count * 4);
        return;
    }
    if (format == F16)
        for (; i + LANES <= count; i += LANES) store(to + i, load_halves(from + 2 * i));
    else
        for (; i + LANES <= count; i += LANES) store(to + i, load_bfloats(from + 2 * i));
    for (; i < count; i++) {
        uint16_t half;
        __builtin_memcpy(&half, from + 2 * i, 2);
        to[i] = format == F16 ? half_to_float(half) : bits_to_float((uint32_t)half << 16);
    }
}

KC_INLINE void dense_strip(const float (*w)[DENSE_STRIP], int columns, const float *x, float sums[DENSE_ROWS]) {
    Floats acc[DENSE_ROWS] = {};
    int i = 0;
    for (; i + LANES <= columns; i += LANES) {
        const Floats v = load<Floats>(x + i);
#pragma GCC unroll 4
        for (int r = 0; r < DENSE_ROWS; r++) acc[r] += load<Floats>(w[r] + i) * v;
    }
    for (int r = 0; r < DENSE_ROWS; r++) {
        sums[r] += sum_lanes(acc[r]);
        for (int k = i; k < columns; k++) sums[r] += w[r][k] * x[k];
    }
}

// LANES numbers of a row as stored.
template <int FORMAT> KC_INLINE Floats load_wide(const uint8_t *from) {
    if constexpr (FORMAT == F32) return load<Floats>(from);
    return FORMAT == F16 ? load_halves(from) : load_bfloats(from);
}

// One token's products of whole strips with the same sums in the same order as dense_strip's, so that a row's result does not
// depend on how many tokens are computed with it. Nothing is used twice, so nothing is put into the cache first; the rows are
// asked for ahead, since memory, not arithmetic, is what one token waits for.
template <int FORMAT>
KC_INLINE void dense_token(const uint8_t *from, int64_t row_bytes, int columns, const float *x, float sums[DENSE_ROWS]) {
    constexpr int BYTES = FORMAT == F32 ? 4 : 2, STEP = 64 / BYTES;
    for (int c = 0; c < columns; c += DENSE_STRIP) {
        Floats acc[DENSE_ROWS] = {};
        for (int i = c; i < c + DENSE_STRIP; i += STEP) {
            // At a row's end its place is taken by the row that follows the last of these.
            const int64_t ahead = (int64_t)i * BYTES + DENSE_AHEAD < row_bytes ? DENSE_AHEAD : DENSE_AHEAD + (DENSE_ROWS - 1) * row_bytes;
#pragma GCC unroll 4
            for (int r = 0; r < DENSE_ROWS; r++) {
                const uint8_t *at = from + r * row_bytes + (int64_t)i * BYTES;
                __builtin_prefetch(at + ahead);
#pragma GCC unroll 4
                for (int k = 0; k < STEP; k += LANES) acc[r] += load_wide<FORMAT>(at + k * BYTES) * load<Floats>(x + i + k);
            }
        }
        for (int r = 0; r < DENSE_ROWS; r++) sums[r] += sum_lanes(acc[r]);
    }
}

// The columns of whole strips that have been summed up.
KC_INLINE int dense_token_strips(const DenseProduct &p, int rows, float sums[DENSE_ROWS]) {
    if (p.tokens != 1 || rows != DENSE_ROWS) return 0;
    const int columns = p.part->columns / DENSE_STRIP * DENSE_STRIP;
    const int64_t row_bytes = (int64_t)p.part->columns * source_block_bytes(p.part->format);
    const uint8_t *from = p.part->data + p.group * DENSE_ROWS * row_bytes;
    if (p.part->format == F32)
        dense_token<F32>(from, row_bytes, columns, p.x, sums);
    else if (p.part->format == F16)
        dense_token<F16>(from, row_bytes, columns, p.x, sums);
    else
        dense_token<BF16>(from, row_bytes, columns, p.x, sums);
    return columns;
}

void dense_group(const DenseProduct &p) {
    const int first = p.group * DENSE_ROWS, rest = p.part->rows - first, rows = rest < DENSE_ROWS ? rest : DENSE_ROWS;
    const int columns = p.part->columns, bytes = source_block_bytes(p.part->format);
    alignas(64) float strip[DENSE_ROWS][DENSE_STRIP] = {};
    float sums[MAX_TOKEN_BLOCK][DENSE_ROWS] = {};
    for (int c = dense_token_strips(p, rows, sums[0]); c < columns; c += DENSE_STRIP) {
        const int width = columns - c < DENSE_STRIP ? columns - c : DENSE_STRIP;
        for (int r = 0; r < rows; r++)
            widen_row(p.part->format, p.part->data + ((int64_t)(first + r) * columns + c) * bytes, width, strip[r]);
        for (int t = 0; t < p.tokens; t++) dense_strip(strip, width, p.x + (int64_t)t * columns + c, sums[t]);
    }
    for (int t = 0; t < p.tokens; t++)
        for (int r = 0; r < rows; r++)
            p.out[(int64_t)t * p.out_stride + first + r] = sums[t][r] + (p.bias ? p.bias[first + r] : 0.0f);
}
