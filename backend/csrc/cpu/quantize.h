// Activations as 8-bit integers, laid out for the dot products of linear.h.
//
// Per token and block of columns: x ~ d * q with q = round(x * 127 / max|x|), d = max|x| / 127. Tokens are taken
// TOKEN_TILE at a time (the last tile has the rest), and a block of a tile is contiguous:
//   256 columns: q i8[64 quads][T][4], sums over 32 columns i16[4][T][2], offsets i16[16][T][2], d f32[T]
//                offsets of 16 columns: -32 times the sum of columns 0 and 1 of each quad, and of columns 2 and 3 (isa.h)
//   32 columns : q i8[8 quads][T][4], sum i32[T], d f32[T]
// Blocks of one column range follow each other over all tokens: [block][tile], because the product walks them that way.

constexpr int TOKEN_TILE = 3, MAX_TOKEN_BLOCK = 126;
constexpr int CENTRE = 32;  // Q6_K stores w + 32

struct Wide {  // blocks of 256 columns, for K-quants
    static constexpr int columns = 256, sums = 256, offsets = 272, d = 336, bytes = 340;
};
struct Narrow {  // blocks of 32 columns, for Q4_0 and Q8_0
    static constexpr int columns = 32, sum = 32, d = 36, bytes = 40;
};

struct QuantizeJob {
    const float *x;
    uint8_t *out;
    int tokens, columns;
};

// Rounds `columns` floats into q (given as quads `stride` bytes apart) and returns d.
template <int COLUMNS> KC_INLINE float quantize_run(const float *x, uint8_t *q, int stride) {
    Floats largest = {};
    for (int i = 0; i < COLUMNS; i += LANES) largest = maximum(largest, absolute(load<Floats>(x + i)));
    const float peak = max_lanes(largest);
    const Floats inverse = splat(peak > 0 ? 127.0f / peak : 0.0f), magic = splat(12582912.0f);
    for (int i = 0; i < COLUMNS; i += LANES) {
        const Ints rounded = bits<Ints>(load<Floats>(x + i) * inverse + magic) - bits<Ints>(magic);
        typedef int8_t Quads __attribute__((vector_size(LANES)));
        const Quads packed = __builtin_convertvector(rounded, Quads);
        for (int k = 0; k < LANES / 4; k++) __builtin_memcpy(q + (i / 4 + k) * stride, (const char *)&packed + 4 * k, 4);
    }
    return peak / 127.0f;
}

// Sum of two neighbouring columns of `quads` quads.
KC_INLINE int sum_halves(const uint8_t *q, int stride, int quads) {
    int sum = 0;
    for (int i = 0; i < quads; i++) sum += (int8_t)q[i * stride] + (int8_t)q[i * stride + 1];
    return sum;
}

template <class Shape> KC_INLINE void quantize_block(const float *x, uint8_t *block, int tokens, int t) {
    uint8_t *q = block + t * 4;
    const int stride = tokens * 4;
    const float d = quantize_run<Shape::columns>(x, q, stride);
    __builtin_memcpy(block + Shape::d * tokens + t * 4, &d, 4);
    if constexpr (Shape::columns == 32) {
        const int32_t sum = sum_halves(q, stride, 8) + sum_halves(q + 2, stride, 8);
        __builtin_memcpy(block + Narrow::sum * tokens + t * 4, &sum, 4);
    } else {
        for (int group = 0; group < 8; group++) {
            int16_t total = 0;
            for (int half = 2 * group; half < 2 * group + 2; half++) {
                const uint8_t *quads = q + half * 4 * stride;
                const int16_t sums[2] = {(int16_t)sum_halves(quads, stride, 4), (int16_t)sum_halves(quads + 2, stride, 4)};
                const int16_t offsets[2] = {(int16_t)(-CENTRE * sums[0]), (int16_t)(-CENTRE * sums[1])};
                __builtin_memcpy(block + Wide::offsets * tokens + (half * tokens + t) * 4, offsets, 4);
                total = (int16_t)(total + sums[0] + sums[1]);
            }
            __builtin_memcpy(block + Wide::sums * tokens + (group / 2 * tokens + t) * 4 + (group & 1) * 2, &total, 2);
        }
    }
}

template <class Shape> void quantize_tile(void *context, int tile, int) {
    const QuantizeJob &job = *(const QuantizeJob *)context;
    const int first = tile * TOKEN_TILE, rest = job.tokens - first, tokens = rest < TOKEN_TILE ? rest : TOKEN_TILE;
    for (int b = 0; b < job.columns / Shape::columns; b++) {
        uint8_t *block = job.out + ((int64_t)b * job.tokens + first) * Shape::bytes;
        for (int t = 0; t < tokens; t++)
            quantize_block<Shape>(job.x + (int64_t)(first + t) * job.columns + b * Shape::columns, block, tokens, t);
    }
}

template <class Shape> int64_t quantized_bytes(int tokens, int columns) {
    return (int64_t)(columns / Shape::columns) * tokens * Shape::bytes;
}

template <class Shape> void quantize(const float *x, int tokens, int columns, uint8_t *out) {
    QuantizeJob job{x, out, tokens, columns};
    const int tiles = (tokens + TOKEN_TILE - 1) / TOKEN_TILE;
    if (tiles == 1)
        quantize_tile<Shape>(&job, 0, 0);
    else
        pool_run(tiles, quantize_tile<Shape>, &job);
}
