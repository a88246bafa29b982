// One query per sequence against latent vectors, absorbed form: a part of a context per block, see attention.cuh.
//
// score = (q_latent . latent + q_rope . key) * scale; what is summed up is the latent vectors themselves.
// q_latent: bf16 [sequences][heads][rank], q_rope: bf16 [sequences][heads][rope], tokens and heads so far apart as the strides say.
// pages: uint8, blocks block_stride bytes apart, in each f16 [block_size][rank + rope]. tables: int32 [sequences][table_width].
// partial: float32 [sequences][heads][splits][rank]; stats: float32 [sequences][heads][splits][2], maximum and sum. scale: times log2 e.
// Limits: block_size a multiple of 16, rank a multiple of 64 up to 512, rank + rope a multiple of 32 up to 576.
//
// Why this form. 64 heads share each latent vector: 121 operations a byte, which only the tensor cores do as fast as memory delivers.
// A block has 32 heads, so that 16 x 512 sums a warp stay in registers and queries in shared memory (two blocks of the same part run
// side by side: the second reads from the second-level cache), and 8 warps. For the scores of 64 tokens a warp reads 8 tokens, for
// the sums 64 columns of all of them, which have then just been read by the other warps. The pairs that the instruction wants come
// from 16-byte reads by byte permutations, as in gqa.cu; only the weights and the rows' maxima go through shared memory.
#include "attention.cuh"

constexpr int MLA_THREADS = 256, MLA_WARPS = MLA_THREADS / WARP, MLA_HEADS = 32, MATRICES = MLA_HEADS / 16;
// In halves: rows of queries and weights that 8 lanes read at once lie in different banks.
constexpr int QUERY_PAD = 32, WEIGHTS_STRIDE = TILE + 8;

struct Latents {
    const u8 *pages;
    long long block_stride;
    const int *table;
    int block_size, width;  // width: rank + rope
};

KC_DEVICE const u16 *vector_of(const Latents &latents, int token) {
    const u8 *block = latents.pages + latents.table[token / latents.block_size] * latents.block_stride;
    return (const u16 *)block + token % latents.block_size * latents.width;
}

KC_DEVICE void load_queries(const u16 *q_latent, long long latent_stride, const u16 *q_rope, long long rope_stride, int count, int rank,
                            int width, u16 *queries) {
    for (int i = threadIdx.x; i < MLA_HEADS * width; i += MLA_THREADS) {
        const int head = i / width, column = i % width;
        const u16 bits = head >= count ? 0 : column < rank ? q_latent[head * latent_stride + column] : q_rope[head * rope_stride + column - rank];
        queries[head * (width + QUERY_PAD) + column] = (u16)half_pair(bf16_value(bits), 0.0f);
    }
}

// scores[m]: heads 16m + g and 16m + g + 8 with tokens 2t and 2t + 1 of the warp's 8. latent: token g of them.
KC_DEVICE void score(const u16 *queries, const u16 *latent, int width, float (&scores)[MATRICES][4]) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, stride = width + QUERY_PAD;
    // Two reads are under way while a third is multiplied; unrolled, it would not fit into the registers of two blocks.
    uint4 next = *(const uint4 *)(latent + 8 * t), after = *(const uint4 *)(latent + 8 * t + 32);
#pragma unroll 1
    for (int column = 8 * t; column < width; column += 32) {
        const uint4 keys = next;
        next = after;
        if (column + 64 < width) after = *(const uint4 *)(latent + column + 64);
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
            const uint4 upper = *(const uint4 *)(queries + (16 * m + g) * stride + column);
            const uint4 lower = *(const uint4 *)(queries + (16 * m + g + 8) * stride + column);
            multiply_f16(scores[m], {upper.x, lower.x, upper.y, lower.y}, keys.x, keys.y);
            multiply_f16(scores[m], {upper.z, lower.z, upper.w, lower.w}, keys.z, keys.w);
        }
    }
}

// Adds 64 columns of the tile's latent vectors, from `column` on, to sums.
KC_DEVICE void add_latents(const u16 *weights, const Latents &latents, int first, int end, int column, float (&sums)[MATRICES][8][4]) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll 1  // more would not fit into the registers of two blocks
    for (int s = 0; s < TILE / 16; s++) {
        const int run = first + 16 * s, last = end - 1 - run;
        if (last < 0) break;
        const u16 *vectors = vector_of(latents, run) + column + 8 * g;
        uint4 rows[4];
#pragma unroll
        for (int i = 0; i < 4; i++)  // a weight past the end is 0, but its vector must be of numbers
            rows[i] = *(const uint4 *)(vectors + min(2 * t + i % 2 + i / 2 * 8, last) * latents.width);
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
            const u16 *upper = weights + (16 * m + g) * WEIGHTS_STRIDE + 16 * s + 2 * t, *lower = upper + 8 * WEIGHTS_STRIDE;
            const u32 a[4] = {*(const u32 *)upper, *(const u32 *)lower, *(const u32 *)(upper + 8), *(const u32 *)(lower + 8)};
#pragma unroll
            for (int j = 0; j < 8; j++) multiply_f16(sums[m][j], a, column_pair(rows[0], rows[1], j), column_pair(rows[2], rows[3], j));
        }
    }
}

KC_KERNEL(MLA_THREADS, 2)
mla(const u16 *q_latent, long long latent_token, long long latent_head, const u16 *q_rope, long long rope_token, long long rope_head, int heads,
    const u8 *pages, long long block_stride, int block_size, int rank, int rope, const int *tables, int table_width, const int *contexts,
    float scale, int splits, float *partial, float *stats) {
    KC_DYNAMIC_SHARED(memory);  // queries, then weights
    KC_SHARED float maxima[MLA_WARPS][MLA_HEADS];
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, warp = threadIdx.x / WARP, width = rank + rope, split = blockIdx.y;
    const int tiles = (heads + MLA_HEADS - 1) / MLA_HEADS, first_head = blockIdx.x % tiles * MLA_HEADS;
    const long long sequence = blockIdx.x / tiles;
    const int length = contexts[sequence], part = part_of(length), first = split * part, end = min(first + part, length);
    if (first >= end) return;
    u16 *queries = (u16 *)memory, *weights = queries + MLA_HEADS * (width + QUERY_PAD);
    const Latents latents = {pages, block_stride, tables + sequence * table_width, block_size, width};
    load_queries(q_latent + sequence * latent_token + first_head * latent_head, latent_head, q_rope + sequence * rope_token + first_head * rope_head,
                 rope_head, heads - first_head, rank, width, queries);
    float sums[MATRICES][8][4] = {}, highest[MATRICES][2], weight[MATRICES][2] = {};
#pragma unroll
    for (int m = 0; m < MATRICES; m++) highest[m][0] = highest[m][1] = -INFINITY;
    block_barrier();
    for (int tile = first; tile < end; tile += TILE) {
        float scores[MATRICES][4] = {};
        score(queries, vector_of(latents, min(tile + warp * 8 + g, end - 1)), width, scores);
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &score = scores[m][2 * half + i];
                    score = tile + warp * 8 + 2 * t + i < end ? score * scale : -INFINITY;
                }
                const float top = quad_max(fmaxf(scores[m][2 * half], scores[m][2 * half + 1]));
                if (t == 0) maxima[warp][16 * m + 8 * half + g] = top;
            }
        block_barrier();  // also: the last tile's weights have been used
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = 16 * m + 8 * half + g;
                float top = highest[m][half];
#pragma unroll
                for (int w = 0; w < MLA_WARPS; w++) top = fmaxf(top, maxima[w][row]);
                const float factor = shrink(highest[m][half], top);
                highest[m][half] = top;
                const float one = exp2f(scores[m][2 * half] - top), two = exp2f(scores[m][2 * half + 1] - top);
                weight[m][half] = weight[m][half] * factor + one + two;
                *(u32 *)(weights + row * WEIGHTS_STRIDE + warp * 8 + 2 * t) = half_pair(one, two);
#pragma unroll
                for (int j = 0; j < 8; j++) sums[m][j][2 * half] *= factor, sums[m][j][2 * half + 1] *= factor;
            }
        block_barrier();
        if (warp * 64 < rank) add_latents(weights, latents, tile, end, warp * 64, sums);
    }
    block_barrier();
#pragma unroll
    for (int m = 0; m < MATRICES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float sum = quad_sum(weight[m][half]);
            if (t == 0) maxima[warp][16 * m + 8 * half + g] = sum;
        }
    block_barrier();
#pragma unroll
    for (int m = 0; m < MATRICES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = 16 * m + 8 * half + g;
            if (first_head + row >= heads) continue;
            const long long place = (sequence * heads + first_head + row) * splits + split;
            if (warp == 0 && t == 0) {
                float total = 0;
                for (int w = 0; w < MLA_WARPS; w++) total += maxima[w][row];
                stats[2 * place] = highest[m][half], stats[2 * place + 1] = total;
            }
            if (warp * 64 >= rank) continue;
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) partial[place * rank + warp * 64 + 16 * t + 8 * i + j] = sums[m][j][2 * half + i];
        }
}
