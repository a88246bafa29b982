// Activations as 8-bit integers, laid out for the dot products of linear.h.
//
// Per token and group of 32 columns: x ~ d * q with q = round(x * 127 / max|x|), d = max|x| / 127. A group is short so that a
// large value costs few others their precision. Tokens are taken TOKEN_TILE at a time (the last tile has the rest), and a block
// of a tile is contiguous:
//   256 columns: q i8[64 quads][T][4], offsets i16[16][T][2], sums f32[8][T], d f32[8][T]
//                offsets of 16 columns: -32 times the sum of columns 0 and 1 of each quad, and of columns 2 and 3 (isa.h)
//                sums of 32 columns: d times the sum of q
//   32 columns : q i8[8 quads][T][4], sum i32[T], d f32[T]
// Blocks of one column range follow each other over all tokens: [block][tile], because the product walks them that way.

constexpr int TOKEN_TILE = 3, MAX_TOKEN_BLOCK = 126;
constexpr int CENTRE = 32;  // Q6_K stores w + 32

struct Wide {  // blocks of 256 columns, for K-quants
    static constexpr int columns = 256, offsets = 256, sums = 320, d = 352, bytes = 384;
};
struct Narrow {  // blocks of 32 columns, for the other formats
    static constexpr int columns = 32, sum = 32, d = 36, bytes = 40;
};

struct QuantizeJob {
    const float *x;
    uint8_t *out;
    int tokens, columns;
};

// Rounds 32 floats into q (given as quads `stride` bytes apart) and returns d.
KC_INLINE float quantize_group(const float *x, uint8_t *q, int stride) {
    Floats largest = {};
    for (int i = 0; i < 32; i += LANES) largest = maximum(largest, absolute(load<Floats>(x + i)));
    const float peak = max_lanes(largest);
    const Floats inverse = splat(peak > 0 ? 127.0f / peak : 0.0f), magic = splat(12582912.0f);
    for (int i = 0; i < 32; i += LANES) {
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
    for (int group = 0; group < Shape::columns / 32; group++) {
        uint8_t *quads = q + group * 8 * stride;
        const float d = quantize_group(x + group * 32, quads, stride);
        __builtin_memcpy(block + Shape::d * tokens + (group * tokens + t) * 4, &d, 4);
        const int sums[4] = {sum_halves(quads, stride, 4), sum_halves(quads + 2, stride, 4), sum_halves(quads + 4 * stride, stride, 4),
                             sum_halves(quads + 4 * stride + 2, stride, 4)};
        const int32_t total = sums[0] + sums[1] + sums[2] + sums[3];
        if constexpr (Shape::columns == 32) {
            __builtin_memcpy(block + Shape::sum * tokens + t * 4, &total, 4);
        } else {
            const float scaled = d * (float)total;
            __builtin_memcpy(block + Shape::sums * tokens + (group * tokens + t) * 4, &scaled, 4);
            for (int half = 0; half < 2; half++) {
                const int16_t offsets[2] = {(int16_t)(-CENTRE * sums[2 * half]), (int16_t)(-CENTRE * sums[2 * half + 1])};
                __builtin_memcpy(block + Shape::offsets * tokens + ((2 * group + half) * tokens + t) * 4, offsets, 4);
            }
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
