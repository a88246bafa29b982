// One query per sequence against keys and values of heads: a part of a context per block, see attention.cuh.
//
// q: bf16 [sequences][heads][WIDTH], sequences q_stride apart. pages: uint8, blocks block_stride bytes apart, in each the pages of
// its kv heads: keys f16 [WIDTH][block_size], values f16 [block_size][WIDTH]. tables: int32 [sequences][table_width].
// partial: float32 [sequences][heads][splits][WIDTH]; stats: float32 [sequences][heads][splits][2], maximum and sum. scale: times log2 e.
// Limits: block_size a multiple of 16, WIDTH 64 or 128. No more is read of a page than 8 tokens past the context.
//
// Why this form. Up to 16 query heads of a kv head are the rows of one tensor-core tile, so that reading is all that takes time. A
// warp takes 64 tokens for itself: a lane reads 16 bytes of a row of keys (8 tokens) or values (8 columns), and which token or
// column is which of the product's is free, so that the pairs the instruction wants are two byte permutations, the weights need
// not move between lanes, and nothing goes through shared memory until the warps' sums are added at the end.
#include "attention.cuh"

constexpr int GQA_THREADS = 128, GQA_WARPS = GQA_THREADS / WARP, HEADS = 16;

template <int WIDTH> struct Sums {
    float values[WIDTH / 8][4], highest[2], sum[2];  // of rows g and g + 8
};

// The query as fragments of step s, one per lane: dimensions 16s + 2t, + 1, + 8, + 9 of rows g and g + 8.
template <int WIDTH> KC_DEVICE void load_query(const u16 *q, int count, uint4 *fragments) {
    for (int i = threadIdx.x; i < WIDTH / 16 * WARP; i += GQA_THREADS) {
        const int g = i % WARP / 4, t = i % 4, column = i / WARP * 16 + 2 * t;
        u32 a[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int row = g + j % 2 * 8;
            const u32 pair = row < count ? *(const u32 *)(q + row * WIDTH + column + j / 2 * 8) : 0;
            a[j] = half_pair(low_bf16(pair), high_bf16(pair));
        }
        fragments[i] = {a[0], a[1], a[2], a[3]};
    }
}

// scores[j]: of tokens 16t + j (rows g, g + 8 at 0 and 2) and 16t + 8 + j (1 and 3). keys: of the lane's 8 tokens.
template <int WIDTH> KC_DEVICE void score(const uint4 *query, const u16 *keys, int block_size, float (&scores)[8][4]) {
    const int t = threadIdx.x % 4;
#pragma unroll 2
    for (int s = 0; s < WIDTH / 16; s++) {
        const uint4 fragment = query[s * WARP + threadIdx.x % WARP];
        const u32 a[4] = {fragment.x, fragment.y, fragment.z, fragment.w};
        uint4 rows[4];
#pragma unroll
        for (int i = 0; i < 4; i++) rows[i] = *(const uint4 *)(keys + (16 * s + 2 * t + i % 2 + i / 2 * 8) * block_size);
#pragma unroll
        for (int j = 0; j < 8; j++) multiply_f16(scores[j], a, column_pair(rows[0], rows[1], j), column_pair(rows[2], rows[3], j));
    }
}

// scores become weights.
template <int WIDTH> KC_DEVICE void weigh(float (&scores)[8][4], float scale, int left, Sums<WIDTH> &sums) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float highest = -INFINITY;
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &score = scores[j][2 * half + i];
                score = 16 * t + 8 * i + j < left ? score * scale : -INFINITY;
                highest = fmaxf(highest, score);
            }
        highest = fmaxf(quad_max(highest), sums.highest[half]);
        const float factor = shrink(sums.highest[half], highest);
        sums.highest[half] = highest;
        sums.sum[half] *= factor;
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                scores[j][2 * half + i] = exp2f(scores[j][2 * half + i] - highest);
                sums.sum[half] += scores[j][2 * half + i];
            }
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++) sums.values[n][2 * half] *= factor, sums.values[n][2 * half + 1] *= factor;
    }
}

// Where the pages of a sequence's kv head are.
struct Context {
    const u8 *pages;
    long long block_stride;
    const int *table;
    int block_size;
};

KC_DEVICE const u8 *page_of(const Context &context, int token) {
    return context.pages + context.table[token / context.block_size] * context.block_stride;
}

// weights: of the 64 tokens from `first` on; those past `end` are 0, but their values must be numbers, so the last is read for them.
template <int WIDTH> KC_DEVICE void add_values(const float (&weights)[8][4], const Context &context, int first, int end, Sums<WIDTH> &sums) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    // In the order of `score`: 16t + 2s, 16t + 8 + 2s, and one after each. All at once, since they take half of the registers then.
    u32 a[4][4];
#pragma unroll
    for (int s = 0; s < 4; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[s][i] = half_pair(weights[2 * s + i / 2][i % 2 * 2], weights[2 * s + i / 2][i % 2 * 2 + 1]);
    // A lane's tokens are 16 of one block.
    const int run = min(first + 16 * t, (end - 1) / 16 * 16), last = end - 1 - run;
    const u16 *values = (const u16 *)(page_of(context, run) + context.block_size * WIDTH * 2) + run % context.block_size * WIDTH + 8 * g;
#pragma unroll
    for (int s = 0; s < 4; s++)
#pragma unroll
        for (int c = 0; c < WIDTH / 64; c++) {
            uint4 rows[4];
#pragma unroll
            for (int i = 0; i < 4; i++) rows[i] = *(const uint4 *)(values + min(2 * s + i % 2 * 8 + i / 2, last) * WIDTH + 64 * c);
#pragma unroll
            for (int j = 0; j < 8; j++)
                multiply_f16(sums.values[8 * c + j], a[s], column_pair(rows[0], rows[1], j), column_pair(rows[2], rows[3], j));
        }
}

// The warps' sums, each as far as its own highest score, become one in `merged` [HEADS][WIDTH]; the row's statistics in stats.
template <int WIDTH> KC_DEVICE void merge(Sums<WIDTH> &sums, float *merged, float (&stats)[HEADS][2]) {
    KC_SHARED float highest[GQA_WARPS][HEADS], weight[GQA_WARPS][HEADS];
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, warp = threadIdx.x / WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float sum = quad_sum(sums.sum[half]);
        if (t == 0) highest[warp][g + 8 * half] = sums.highest[half], weight[warp][g + 8 * half] = sum;
    }
    block_barrier();
    float factors[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = g + 8 * half;
        float top = -INFINITY, total = 0;
        for (int w = 0; w < GQA_WARPS; w++) top = fmaxf(top, highest[w][row]);
        for (int w = 0; w < GQA_WARPS; w++) total += weight[w][row] * shrink(highest[w][row], top);
        factors[half] = shrink(sums.highest[half], top);
        if (warp == 0 && t == 0) stats[row][0] = top, stats[row][1] = total;
    }
    for (int w = 0; w < GQA_WARPS; w++) {
        if (warp == w)
#pragma unroll
            for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int row = g + i / 2 * 8, column = n / 8 * 64 + 16 * t + i % 2 * 8 + n % 8;
                    const float value = sums.values[n][i] * factors[i / 2];
                    merged[row * WIDTH + column] = w ? merged[row * WIDTH + column] + value : value;
                }
        block_barrier();
    }
}

template <int WIDTH>
KC_DEVICE void attend(const u16 *q, long long q_stride, int heads, const u8 *pages, long long block_stride, int block_size, int kv_heads,
                      const int *tables, int table_width, const int *contexts, float scale, int splits, float *partial, float *stats) {
    KC_DYNAMIC_SHARED(memory);  // HEADS rows of WIDTH floats, then the query's fragments
    KC_SHARED float row_stats[HEADS][2];
    const int group = heads / kv_heads, tiles = (group + HEADS - 1) / HEADS, tile = blockIdx.x % tiles, split = blockIdx.y;
    const int kv_head = blockIdx.x / tiles % kv_heads;
    const long long sequence = blockIdx.x / tiles / kv_heads;
    const int length = contexts[sequence], part = part_of(length), first = split * part, end = min(first + part, length);
    if (first >= end) return;
    const int first_head = kv_head * group + tile * HEADS, count = min(HEADS, group - tile * HEADS);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Context context = {pages + (long long)kv_head * block_size * WIDTH * 4, block_stride, tables + sequence * table_width, block_size};
    uint4 *query = memory + HEADS * WIDTH / 4;
    load_query<WIDTH>(q + sequence * q_stride + (long long)first_head * WIDTH, count, query);
    block_barrier();
    Sums<WIDTH> sums = {{}, {-INFINITY, -INFINITY}, {}};
    for (int strip = first + warp * TILE; strip < end; strip += GQA_WARPS * TILE) {
        float scores[8][4] = {};
        const int run = min(strip + lane / 4 * 8, (end - 1) / 8 * 8);
        score<WIDTH>(query, (const u16 *)page_of(context, run) + run % block_size, block_size, scores);
        weigh<WIDTH>(scores, scale, end - strip, sums);
        add_values<WIDTH>(scores, context, strip, end, sums);
    }
    float *merged = (float *)memory;
    merge<WIDTH>(sums, merged, row_stats);
    for (int i = threadIdx.x; i < count * WIDTH; i += GQA_THREADS) {
        const long long row = ((sequence * heads + first_head + i / WIDTH) * splits + split);
        partial[row * WIDTH + i % WIDTH] = merged[i];
        if (i % WIDTH < 2) stats[row * 2 + i % WIDTH] = row_stats[i / WIDTH][i % WIDTH];
    }
}

#define GQA(WIDTH)                                                                                                                       \
    KC_KERNEL(GQA_THREADS, 2)                                                                                                            \
    gqa_##WIDTH(const u16 *q, long long q_stride, int heads, const u8 *pages, long long block_stride, int block_size, int kv_heads,      \
                const int *tables, int table_width, const int *contexts, float scale, int splits, float *partial, float *stats) {        \
        attend<WIDTH>(q, q_stride, heads, pages, block_stride, block_size, kv_heads, tables, table_width, contexts, scale, splits,       \
                      partial, stats);                                                                                                   \
    }
GQA(64)
GQA(128)
