// y = W x + b over packed weights, integer inside a block of columns, float across blocks.
//
// For a block of 256 columns of a K-quant (s, m: sub-scales of its groups; q, X: integers of weight and activation):
//   y += d * dx * sum_g s_g * sum(q * X)  -  dmin * dx * sum_g m_g * sum(X)          (Q6_K: m_g = 32 s_g and dmin = d)
// AVX2: one vpmaddubsw handles 8 rows x 4 columns; its 16-bit results of several quads are added before one vpmaddwd
// multiplies by the sub-scale and widens (formats.h: max, isa.h: safe_quads), so that the multiplier pipe, the limit of
// CPUs with one 128-bit integer multiplier, does 8 useful multiplications in 9 for Q4_K.
// One token: weights are expanded in registers on their way from memory (decode; bound by memory).
// More tokens: a tile (8 or 16 rows x 256 columns, 2 or 4 KB) is expanded once into the first-level cache and multiplied with
// every token of a block, 4 tokens x 8 or 16 rows in registers (prefill; bound by the multiplier).

template <class F> struct Expanded {  // one tile of a K-quant, ready to multiply
    static constexpr int pairs = 128 / F::scale_columns;
    Bytes quad[64];
    Words scale[2 * pairs], correction[pairs];
    Floats d, dmin;
};

template <class F> KC_INLINE void expand(const uint8_t *tile, Expanded<F> &to) {
    typedef typename F::Tile Tile;
    for (int group = 0; group < 8; group++) {
        Bytes w[8];
        F::quads(tile, group, w);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) to.quad[group * 8 + i] = w[i];
    }
    for (int pair = 0; pair < Expanded<F>::pairs; pair++) {
        const Words scales = F::scale_pair(tile, pair);
        to.scale[2 * pair] = first_twice(scales);
        to.scale[2 * pair + 1] = second_twice(scales);
        if constexpr (F::has_minimum)
            to.correction[pair] = F::minimum_pair(tile, pair);
        else
            to.correction[pair] = scales << 5;
    }
    to.d = load_halves(tile + Tile::d * LANES);
    if constexpr (F::has_minimum)
        to.dmin = load_halves(tile + Tile::dmin * LANES);
    else
        to.dmin = to.d;
}

template <class F> constexpr int quads_per_fold() {
    return safe_quads(F::max) < F::scale_columns / 4 ? safe_quads(F::max) : F::scale_columns / 4;
}

template <class F, int T> KC_INLINE void multiply_expanded(const Expanded<F> &tile, const uint8_t *x, Floats *acc) {
    constexpr int STEP = quads_per_fold<F>(), SUMS = F::scale_columns == 32 ? Wide::sums32 : Wide::sums16;
    Ints sum[T] = {};
    for (int quad = 0; quad < 64; quad += STEP) {
        Dot dots[T] = {};
        const uint8_t *q = x + quad * T * 4;
#pragma GCC unroll 8
        for (int i = 0; i < STEP; i++) {
            const Bytes w = tile.quad[quad + i];
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) dots[t] = dot(dots[t], w, broadcast_quad(q + (i * T + t) * 4));
        }
        const Words scale = tile.scale[quad * 4 / F::scale_columns];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sum[t] += fold(dots[t], scale);
    }
    Ints minimum[T] = {};
#pragma GCC unroll 8
    for (int pair = 0; pair < Expanded<F>::pairs; pair++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
            minimum[t] += multiply_pairs(tile.correction[pair], broadcast_pair(x + SUMS * T + (pair * T + t) * 4));
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        float dx;
        __builtin_memcpy(&dx, x + Wide::d * T + t * 4, 4);
        acc[t] += (to_floats(sum[t]) * tile.d - to_floats(minimum[t]) * tile.dmin) * dx;
    }
}

// How far ahead of its use a decode step asks for weights: about one memory latency.
#ifndef KC_PREFETCH
#define KC_PREFETCH 2048
#endif
constexpr int PREFETCH_BYTES = KC_PREFETCH;

// One token, one tile, straight from the packed bytes.
template <class F> KC_INLINE Floats multiply_packed(const uint8_t *tile, const uint8_t *x, Floats acc) {
    typedef typename F::Tile Tile;
    constexpr int STEP = quads_per_fold<F>(), SUMS = F::scale_columns == 32 ? Wide::sums32 : Wide::sums16;
    constexpr int GROUPS_PER_PAIR = F::scale_columns == 32 ? 2 : 1, PAIRS = 128 / F::scale_columns;
    Ints sum = {}, minimum = {};
    constexpr int PAIR_BYTES = (Tile::bytes * LANES + PAIRS - 1) / PAIRS;
    for (int pair = 0; pair < PAIRS; pair++) {
#pragma GCC unroll 8
        for (int line = 0; line < PAIR_BYTES; line += 64) __builtin_prefetch(tile + PREFETCH_BYTES + pair * PAIR_BYTES + line);
        const Words scales = F::scale_pair(tile, pair);
        const Words scale[2] = {first_twice(scales), second_twice(scales)};
#pragma GCC unroll 2
        for (int i = 0; i < GROUPS_PER_PAIR; i++) {
            const int group = pair * GROUPS_PER_PAIR + i;
            Bytes w[8];
            F::quads(tile, group, w);
            const uint8_t *q = x + group * 32;
#pragma GCC unroll 4
            for (int first = 0; first < 8; first += STEP) {
                Dot dots = {};
#pragma GCC unroll 8
                for (int j = first; j < first + STEP; j++) dots = dot(dots, w[j], broadcast_quad(q + j * 4));
                sum += fold(dots, scale[F::scale_columns == 32 ? i : first / 4]);
            }
        }
        Words correction;
        if constexpr (F::has_minimum)
            correction = F::minimum_pair(tile, pair);
        else
            correction = scales;
        minimum += multiply_pairs(correction, broadcast_pair(x + SUMS + pair * 4));
    }
    float dx;
    __builtin_memcpy(&dx, x + Wide::d, 4);
    const Floats d = load_halves(tile + Tile::d * LANES);
    if constexpr (F::has_minimum)
        return acc + (to_floats(sum) * d - to_floats(minimum) * load_halves(tile + Tile::dmin * LANES)) * dx;
    else
        return acc + to_floats(sum - (minimum << 5)) * (d * dx);
}

// Q4_0 and Q8_0: w holds the 8 quads of a block of 32 columns.
template <class F, int T> KC_INLINE void multiply_narrow(const Bytes w[8], Floats d, const uint8_t *x, Floats *acc) {
    constexpr int STEP = F::is_signed ? 8 : safe_quads(F::max);
    static_assert(STEP == 8, "a block is folded once");
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        int32_t total;
        float dx;
        __builtin_memcpy(&total, x + Narrow::sum * T + t * 4, 4);
        __builtin_memcpy(&dx, x + Narrow::d * T + t * 4, 4);
        Ints sum = splat_int(-F::offset * total);
        if constexpr (F::is_signed) {
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) sum = dot_signed(sum, w[j], broadcast_quad(x + (j * T + t) * 4));
        } else {
            Dot dots = {};
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) dots = dot(dots, w[j], broadcast_quad(x + (j * T + t) * 4));
            sum += fold(dots);
        }
        acc[t] += to_floats(sum) * (d * dx);
    }
}

struct Product {  // one row group times a run of tokens
    const uint8_t *tiles;      // first tile of the row group
    int blocks;                // tiles per row group
    const uint8_t *x;          // quantised activations of the run's first token, block 0
    int64_t x_stride;          // bytes from a block of columns to the next
    int tokens;
};

template <class F> void wide_product(const Product &p, Floats *acc) {
    const int tile_bytes = F::Tile::bytes * LANES;
    if (p.tokens == 1) {
        Floats sum = {};
        for (int b = 0; b < p.blocks; b++) sum = multiply_packed<F>(p.tiles + (int64_t)b * tile_bytes, p.x + b * p.x_stride, sum);
        acc[0] = sum;
        return;
    }
    for (int t = 0; t < p.tokens; t++) acc[t] = Floats{};
    Expanded<F> tile;
    for (int b = 0; b < p.blocks; b++) {
        expand<F>(p.tiles + (int64_t)b * tile_bytes, tile);
        const uint8_t *x = p.x + b * p.x_stride;
        int t = 0;
        for (; t + 4 <= p.tokens; t += 4) multiply_expanded<F, 4>(tile, x + t * Wide::bytes, acc + t);
        if (p.tokens - t == 3) multiply_expanded<F, 3>(tile, x + t * Wide::bytes, acc + t);
        if (p.tokens - t == 2) multiply_expanded<F, 2>(tile, x + t * Wide::bytes, acc + t);
        if (p.tokens - t == 1) multiply_expanded<F, 1>(tile, x + t * Wide::bytes, acc + t);
    }
}

template <class F> void narrow_product(const Product &p, Floats *acc) {
    const int tile_bytes = F::Tile::bytes * LANES;
    for (int t = 0; t < p.tokens; t++) acc[t] = Floats{};
    for (int b = 0; b < p.blocks; b++) {
        const uint8_t *tile = p.tiles + (int64_t)b * tile_bytes, *x = p.x + b * p.x_stride;
        Bytes w[8];
        F::quads(tile, w);
        const Floats d = load_halves(tile + F::Tile::d * LANES);
        int t = 0;
        for (; t + 4 <= p.tokens; t += 4) multiply_narrow<F, 4>(w, d, x + t * Narrow::bytes, acc + t);
        if (p.tokens - t == 3) multiply_narrow<F, 3>(w, d, x + t * Narrow::bytes, acc + t);
        if (p.tokens - t == 2) multiply_narrow<F, 2>(w, d, x + t * Narrow::bytes, acc + t);
        if (p.tokens - t == 1) multiply_narrow<F, 1>(w, d, x + t * Narrow::bytes, acc + t);
    }
}

struct LinearPart {
    Part part;
    int first_row, groups, groups_per_task, tasks;
};

constexpr int MAX_PARTS = 8;

struct LinearJob {
    LinearPart parts[MAX_PARTS];
    int part_count, tasks_per_block, tokens, token_block, columns, out_columns;
    const float *x, *bias;
    const uint8_t *wide, *narrow;
    float *out;
};

void packed_group(const LinearJob &job, const LinearPart &entry, int group, int first_token, int tokens) {
    const Part &part = entry.part;
    const bool is_wide = block_columns(part.format) == 256;
    const int token_bytes = is_wide ? Wide::bytes : Narrow::bytes;
    const int blocks = part.columns / block_columns(part.format);
    const int64_t group_bytes = (int64_t)blocks * tile_row_bytes(part.format) * LANES;
    const Product product{part.data + group * group_bytes, blocks, (is_wide ? job.wide : job.narrow) + (int64_t)first_token * token_bytes,
                          (int64_t)job.tokens * token_bytes, tokens};
    Floats acc[MAX_TOKEN_BLOCK];
    switch (part.format) {
    case Q4_K: wide_product<FormatQ4_K>(product, acc); break;
    case Q5_K: wide_product<FormatQ5_K>(product, acc); break;
    case Q6_K: wide_product<FormatQ6_K>(product, acc); break;
    case Q4_0: narrow_product<FormatQ4_0>(product, acc); break;
    default: narrow_product<FormatQ8_0>(product, acc);
    }
    const int row = group * LANES, column = entry.first_row + row, rows = part.rows - row < LANES ? part.rows - row : LANES;
    for (int t = 0; t < tokens; t++) {
        float *out = job.out + (int64_t)(first_token + t) * job.out_columns + column;
        if (rows == LANES) {
            store(out, job.bias ? acc[t] + load<Floats>(job.bias + column) : acc[t]);
        } else {
            for (int i = 0; i < rows; i++) out[i] = acc[t][i] + (job.bias ? job.bias[column + i] : 0.0f);
        }
    }
}

void linear_task(void *context, int task, int) {
    const LinearJob &job = *(const LinearJob *)context;
    const int first_token = task / job.tasks_per_block * job.token_block;
    const int rest = job.tokens - first_token, tokens = rest < job.token_block ? rest : job.token_block;
    int index = task % job.tasks_per_block, p = 0;
    while (index >= job.parts[p].tasks) index -= job.parts[p++].tasks;
    const LinearPart &entry = job.parts[p];
    const int first = index * entry.groups_per_task, end = first + entry.groups_per_task;
    for (int group = first; group < end && group < entry.groups; group++) {
        if (entry.part.lanes)
            packed_group(job, entry, group, first_token, tokens);
        else
            dense_group({&entry.part, group, job.x + (int64_t)first_token * job.columns, tokens,
                         job.bias ? job.bias + entry.first_row : nullptr,
                         job.out + (int64_t)first_token * job.out_columns + entry.first_row, job.out_columns});
    }
}

// Weight bytes of one task: large enough to hide taking it, small enough to balance.
constexpr int TASK_BYTES = 32768;

void plan_part(LinearPart &entry, const Part &part, int first_row, bool one_token) {
    const int rows = part.lanes ? LANES : DENSE_ROWS;
    const int64_t row_bytes = part.lanes ? (int64_t)part.columns / block_columns(part.format) * tile_row_bytes(part.format)
                                         : (int64_t)part.columns * source_block_bytes(part.format);
    const int64_t fitting = one_token ? TASK_BYTES / (row_bytes * rows) : 1;
    entry.part = part;
    entry.first_row = first_row;
    entry.groups = (part.rows + rows - 1) / rows;
    entry.groups_per_task = fitting < 1 ? 1 : (int)fitting;
    entry.tasks = (entry.groups + entry.groups_per_task - 1) / entry.groups_per_task;
}

// Tokens whose quantised activations stay in the second-level cache while all rows pass by.
int choose_token_block(int tokens, int columns) {
    int block = (int)(262144 / ((int64_t)columns * Wide::bytes / Wide::columns)) / TOKEN_TILE * TOKEN_TILE;
    if (block > MAX_TOKEN_BLOCK) block = MAX_TOKEN_BLOCK;
    if (block < 32) block = 32;
    return tokens < block ? tokens : block;
}

void linear(const Part *parts, int part_count, const float *x, int tokens, const float *bias, float *out) {
    LinearJob job;
    job.part_count = part_count;
    job.tokens = tokens;
    job.columns = parts[0].columns;
    job.token_block = choose_token_block(tokens, job.columns);
    job.x = x;
    job.bias = bias;
    job.out = out;
    job.out_columns = job.tasks_per_block = 0;
    bool wide = false, narrow = false;
    for (int p = 0; p < part_count; p++) {
        plan_part(job.parts[p], parts[p], job.out_columns, tokens == 1);
        job.out_columns += parts[p].rows;
        job.tasks_per_block += job.parts[p].tasks;
        wide |= parts[p].lanes && block_columns(parts[p].format) == 256;
        narrow |= parts[p].lanes && block_columns(parts[p].format) == 32;
    }
    const int64_t wide_bytes = wide ? (quantized_bytes<Wide>(tokens, job.columns) + 63) & ~63ll : 0;
    const int64_t narrow_bytes = narrow ? quantized_bytes<Narrow>(tokens, job.columns) : 0;
    uint8_t *memory = (uint8_t *)scratch((size_t)(wide_bytes + narrow_bytes));
    job.wide = memory;
    job.narrow = memory + wide_bytes;
    if (wide) quantize<Wide>(x, tokens, job.columns, memory);
    if (narrow) quantize<Narrow>(x, tokens, job.columns, memory + wide_bytes);
    pool_run(job.tasks_per_block * ((tokens + job.token_block - 1) / job.token_block), linear_task, &job);
}
