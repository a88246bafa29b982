// y = W x + b for F32, F16 and BF16 weights: plain dot products in float32 over rows as they lie in the file.
//
// A strip of DENSE_ROWS rows x DENSE_STRIP columns is widened once into the first-level cache (8 KB) and multiplied with
// every token, four rows at a time.

constexpr int DENSE_ROWS = 4, DENSE_STRIP = 512;

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

void dense_group(const DenseProduct &p) {
    const int first = p.group * DENSE_ROWS, rest = p.part->rows - first, rows = rest < DENSE_ROWS ? rest : DENSE_ROWS;
    const int columns = p.part->columns, bytes = source_block_bytes(p.part->format);
    alignas(64) float strip[DENSE_ROWS][DENSE_STRIP] = {};
    float sums[MAX_TOKEN_BLOCK][DENSE_ROWS] = {};
    for (int c = 0; c < columns; c += DENSE_STRIP) {
        const int width = columns - c < DENSE_STRIP ? columns - c : DENSE_STRIP;
        for (int r = 0; r < rows; r++)
            widen_row(p.part->format, p.part->data + ((int64_t)(first + r) * columns + c) * bytes, width, strip[r]);
        for (int t = 0; t < p.tokens; t++) dense_strip(strip, width, p.x + (int64_t)t * columns + c, sums[t]);
    }
    for (int t = 0; t < p.tokens; t++)
        for (int r = 0; r < rows; r++)
            p.out[(int64_t)t * p.out_stride + first + r] = sums[t][r] + (p.bias ? p.bias[first + r] : 0.0f);
}
