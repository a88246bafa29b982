// A mixture of experts for a few tokens, in two launches over the 4-bit weights of int4.cuh:
//   moe_gate_up: hidden[p][i] = silu(gate_e[i] . x[t]) * (up_e[i] . x[t])        for pair p = (token t, its j-th expert e)
//   moe_down:    out[t][r]    = base[t][r] + sum over j of share[t][j] * (down_e[r] . hidden[p])
//
// ids: int32 [tokens][chosen]; pair p = t * chosen + j. experts: per expert the addresses of gate's numbers and scales, up's and
// down's, six in all; an expert whose addresses are 0, or an id outside of the table, is computed elsewhere and adds nothing here.
// x, base, out: bf16 [tokens][width]; hidden: bf16 [pairs][inner]; shares: float32. base may be null.
//
// Why two launches: a row of down needs all of hidden. Why no more: the blocks of moe_gate_up find by themselves which pairs have the
// same expert, with one vote per 32 pairs, and each reads its rows for two of them at once; so nothing is sorted beforehand. In
// moe_down the experts of a token are one long row, and a block of another token with the same expert runs beside it (tokens are
// the fast dimension of the grid), so that what it reads again comes from the second-level cache. Sums are always in one order.
// The next 16 bytes of each row are under way while those at hand are multiplied.
#include "int4.cuh"

typedef unsigned long long u64;

constexpr int MAX_CHOSEN = 32, ADDRESSES = 6;

struct Matrix {
    const uint4 *quants;
    const void *scales;
};

// Which: 0 gate, 1 up, 2 down. Null numbers where the expert is not here.
KC_DEVICE Matrix matrix_of(const u64 *experts, int count, int id, int which) {
    if (id < 0 || id >= count) return {nullptr, nullptr};
    const u64 *addresses = experts + (long long)id * ADDRESSES + 2 * which;
    return {(const uint4 *)addresses[0], (const void *)addresses[1]};
}

struct Sharing {
    int before, next;  // pairs before this one with the same expert; the first one after it, or -1
};

// Every warp finds it for itself.
KC_DEVICE Sharing sharing_of(const int *ids, int pairs, int pair) {
    const int lane = threadIdx.x % WARP, id = ids[pair];
    Sharing found = {0, -1};
#pragma unroll 4
    for (int first = 0; first < pairs; first += WARP) {
        const int other = first + lane;
        const bool same = other < pairs && ids[other] == id;
        found.before += ones(warp_votes(same && other < pair));
        const u32 later = warp_votes(same && other > pair);
        if (later && found.next < 0) found.next = first + lowest_one(later);
    }
    return found;
}

template <int FORMAT, int TOKENS>
KC_DEVICE void gate_up_rows(Matrix gate, Matrix up, const uint4 *const (&tokens)[TOKENS], int groups, int first, int end, u16 *const (&outs)[TOKENS]) {
    KC_DYNAMIC_SHARED(values);  // TOKENS * groups * 4 chunks of x, then TOKENS * groups sums of groups
    float *group_sums = (float *)(values + TOKENS * groups * 4);
    load_x<TOKENS>(tokens, 0, groups, values, group_sums);
    block_barrier();
    const int lane = threadIdx.x % WARP;
    for (int row = first + threadIdx.x / WARP; row < end; row += INT4_WARPS) {
        const uint4 *gate_row = gate.quants + (long long)row * groups, *up_row = up.quants + (long long)row * groups;
        float totals[ROWS][TOKENS] = {};
        uint4 next[ROWS] = {};
        if (lane < groups) next[0] = load_stream(gate_row + lane), next[1] = load_stream(up_row + lane);
        for (int group = lane; group < groups; group += WARP) {
            const uint4 words[ROWS] = {next[0], next[1]};
            if (group + WARP < groups) next[0] = load_stream(gate_row + group + WARP), next[1] = load_stream(up_row + group + WARP);
            float products[ROWS][TOKENS] = {};
            add_group<TOKENS>(words, values, groups, group, products);
            add_scaled<TOKENS>(products[0], scales_of<FORMAT>(gate.scales, row, groups, group), group_sums, groups, group, totals[0]);
            add_scaled<TOKENS>(products[1], scales_of<FORMAT>(up.scales, row, groups, group), group_sums, groups, group, totals[1]);
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const float g = warp_sum(totals[0][t]), u = warp_sum(totals[1][t]);
            if (lane == 0) outs[t][row] = to_bf16(silu(g) * u);
        }
    }
}

template <int FORMAT>
KC_DEVICE void gate_up(const u64 *experts, int count, const int *ids, int pairs, int chosen, const uint4 *x, int inner, int groups, int block_rows, u16 *hidden) {
    const int pair = blockIdx.x, first = blockIdx.y * block_rows, end = min(first + block_rows, inner);
    const Matrix gate = matrix_of(experts, count, ids[pair], 0), up = matrix_of(experts, count, ids[pair], 1);
    if (!gate.quants) return;
    const Sharing sharing = sharing_of(ids, pairs, pair);
    if (sharing.before % 2) return;  // the pair before does it
    const uint4 *token = x + (long long)(pair / chosen) * groups * 4;
    u16 *out = hidden + (long long)pair * inner;
    if (sharing.next < 0) {
        gate_up_rows<FORMAT, 1>(gate, up, {token}, groups, first, end, {out});
        return;
    }
    const uint4 *other = x + (long long)(sharing.next / chosen) * groups * 4;
    gate_up_rows<FORMAT, 2>(gate, up, {token, other}, groups, first, end, {out, hidden + (long long)sharing.next * inner});
}

template <int FORMAT>
KC_DEVICE void down(const u64 *experts, int count, const int *ids, const float *shares, int chosen, const uint4 *hidden, const u16 *base, int inner, int width, int block_rows, u16 *out) {
    KC_DYNAMIC_SHARED(values);  // chosen * groups * 4 chunks of hidden, then chosen * groups sums of groups
    KC_SHARED Matrix downs[MAX_CHOSEN];
    KC_SHARED float weights[MAX_CHOSEN];
    const int groups = inner / 32, all = chosen * groups, lane = threadIdx.x % WARP;
    const long long token = blockIdx.x;
    float *group_sums = (float *)(values + all * 4);
    if ((int)threadIdx.x < chosen) {
        downs[threadIdx.x] = matrix_of(experts, count, ids[token * chosen + threadIdx.x], 2);
        weights[threadIdx.x] = shares[token * chosen + threadIdx.x];
    }
    load_x<1>({hidden + token * all * 4}, 0, all, values, group_sums);
    block_barrier();
    const int end = min((int)(blockIdx.y + 1) * block_rows, width);
    for (int row = blockIdx.y * block_rows + threadIdx.x / WARP * ROWS; row < end; row += INT4_WARPS * ROWS) {
        const int second = min(row + 1, width - 1);  // past the last row it repeats it and is not stored
        float totals[ROWS][1] = {};
        uint4 next[ROWS] = {};
        // Slot s is group s % groups of the token's expert s / groups.
        for (int slot = lane - WARP; slot < all; slot += WARP) {
            const uint4 words[ROWS] = {next[0], next[1]};
            const int ahead = slot + WARP;
            if (ahead < all && downs[ahead / groups].quants) {
                const uint4 *quants = downs[ahead / groups].quants + ahead % groups;
                next[0] = load_stream(quants + (long long)row * groups), next[1] = load_stream(quants + (long long)second * groups);
            }
            if (slot < 0 || !downs[slot / groups].quants) continue;
            const void *scales = downs[slot / groups].scales;
            float products[ROWS][1] = {}, scaled[ROWS][1] = {};
            add_group<1>(words, values, all, slot, products);
            add_scaled<1>(products[0], scales_of<FORMAT>(scales, row, groups, slot % groups), group_sums, all, slot, scaled[0]);
            add_scaled<1>(products[1], scales_of<FORMAT>(scales, second, groups, slot % groups), group_sums, all, slot, scaled[1]);
            totals[0][0] += weights[slot / groups] * scaled[0][0];
            totals[1][0] += weights[slot / groups] * scaled[1][0];
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float total = warp_sum(totals[r][0]);
            const long long place = token * width + row + r;
            if (lane == 0 && row + r < end) out[place] = to_bf16(total + (base ? bf16_value(base[place]) : 0.0f));
        }
    }
}

#define MOE(FORMAT)                                                                                                                    \
    KC_KERNEL(INT4_THREADS)                                                                                                            \
    moe_gate_up_##FORMAT(const u64 *experts, int count, const int *ids, int pairs, int chosen, const uint4 *x, int inner, int groups,  \
                         int block_rows, u16 *hidden) {                                                                                \
        gate_up<FORMAT>(experts, count, ids, pairs, chosen, x, inner, groups, block_rows, hidden);                                     \
    }                                                                                                                                  \
    KC_KERNEL(INT4_THREADS)                                                                                                            \
    moe_down_##FORMAT(const u64 *experts, int count, const int *ids, const float *shares, int chosen, const uint4 *hidden,             \
                      const u16 *base, int inner, int width, int block_rows, u16 *out) {                                               \
        down<FORMAT>(experts, count, ids, shares, chosen, hidden, base, inner, width, block_rows, out);                                \
    }
MOE(INT4)
MOE(Q4_0)
MOE(Q4_K)
