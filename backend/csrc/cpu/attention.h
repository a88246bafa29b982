// Causal attention over a paged float16 cache, without a matrix of scores.
//
// A task is a run of query tokens, the query heads that share one kv head, and a range of keys: at most MAX_ROWS rows of
// queries. It walks the keys in tiles of KEY_TILE: widen K and V to float32 once for all rows, scores = Q K^T (2 rows x 4
// keys of accumulators along the head), running maximum m and sum l per row, O = O * e^(m_old - m_new) + P V (4 rows x 2
// vectors). Few queries over a long context are split along the keys too, so that all threads work; the parts are joined by
// their m and l. Limits: head size <= MAX_WIDTH, any group of heads.

constexpr int KEY_TILE = 32, MAX_ROWS = 64, MAX_WIDTH = 256, MIN_SPLIT_KEYS = 256;
static_assert(KEY_TILE % LANES == 0, "scores of a tile are whole vectors");

struct AttentionTask {
    int seq, kv_head, first_head, heads, first_token, tokens, first_key, end_key, splits;
    float *partial;  // rows x (m, l, O[width]), or null: the task writes the output itself
};

struct AttentionTile {
    alignas(64) float q[MAX_ROWS * MAX_WIDTH];
    alignas(64) float o[MAX_ROWS * MAX_WIDTH];
    alignas(64) float k[KEY_TILE * MAX_WIDTH];
    alignas(64) float v[KEY_TILE * MAX_WIDTH];
    alignas(64) float s[MAX_ROWS * KEY_TILE];
    float m[MAX_ROWS], l[MAX_ROWS];
    int rows, width, padded;  // padded: width rounded up to whole vectors, the rest is zero
};

KC_INLINE void widen_halves(const uint16_t *from, int count, float *to) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load_halves(from + i));
    for (; i < count; i++) to[i] = half_to_float(from[i]);
}

void load_queries(const AttentionCall &call, const AttentionTask &task, AttentionTile &tile) {
    tile.width = call.width;
    tile.padded = (call.width + LANES - 1) / LANES * LANES;
    tile.rows = task.tokens * task.heads;
    const int start = call.seq_starts[task.seq];
    for (int row = 0; row < tile.rows; row++) {
        const float *from = call.q + (start + task.first_token + row / task.heads) * call.q_stride +
                            (int64_t)(task.first_head + row % task.heads) * call.width;
        float *to = tile.q + row * tile.padded;
        for (int i = 0; i < tile.padded; i++) to[i] = i < call.width ? from[i] * call.scale : 0.0f;
        memset(tile.o + row * tile.padded, 0, (size_t)tile.padded * 4);
        tile.m[row] = -__builtin_inff();
        tile.l[row] = 0;
    }
    memset(tile.k, 0, sizeof tile.k);
    memset(tile.v, 0, sizeof tile.v);
}

void load_keys(const AttentionCall &call, const AttentionTask &task, int first, int count, AttentionTile &tile) {
    const int32_t *blocks = call.block_tables + (int64_t)task.seq * call.max_blocks;
    for (int i = 0; i < count; i++) {
        const int64_t slot = (int64_t)blocks[(first + i) / call.block_size] * call.block_size + (first + i) % call.block_size;
        const int64_t offset = (slot * call.kv_heads + task.kv_head) * call.width;
        widen_halves(call.k_cache + offset, call.width, tile.k + i * tile.padded);
        widen_halves(call.v_cache + offset, call.width, tile.v + i * tile.padded);
    }
}

// Sums of 8 accumulators: out[0..3] of the first four, then out[KEY_TILE..] of the last four.
KC_INLINE void store_sums(const Floats acc[8], float *first, float *second) {
#if defined(KC_ISA_AVX2)
    const __m256 a = _mm256_hadd_ps(bits<__m256>(acc[0]), bits<__m256>(acc[1])), b = _mm256_hadd_ps(bits<__m256>(acc[2]), bits<__m256>(acc[3]));
    const __m256 c = _mm256_hadd_ps(bits<__m256>(acc[4]), bits<__m256>(acc[5])), d = _mm256_hadd_ps(bits<__m256>(acc[6]), bits<__m256>(acc[7]));
    const __m256 ab = _mm256_hadd_ps(a, b), cd = _mm256_hadd_ps(c, d);
    _mm_storeu_ps(first, _mm_add_ps(_mm256_castps256_ps128(ab), _mm256_extractf128_ps(ab, 1)));
    _mm_storeu_ps(second, _mm_add_ps(_mm256_castps256_ps128(cd), _mm256_extractf128_ps(cd, 1)));
#else
    for (int i = 0; i < 4; i++) {
        first[i] = sum_lanes(acc[i]);
        second[i] = sum_lanes(acc[4 + i]);
    }
#endif
}

void score_tile(AttentionTile &tile) {
    const int width = tile.padded;
    for (int row = 0; row < tile.rows; row += 2) {
        const float *q0 = tile.q + row * width, *q1 = row + 1 < tile.rows ? q0 + width : q0;
        float *s0 = tile.s + row * KEY_TILE, *s1 = row + 1 < tile.rows ? s0 + KEY_TILE : s0;
        for (int key = 0; key < KEY_TILE; key += 4) {
            const float *k = tile.k + key * width;
            Floats acc[8] = {};
            for (int i = 0; i < width; i += LANES) {
                const Floats a = load<Floats>(q0 + i), b = load<Floats>(q1 + i);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    const Floats kj = load<Floats>(k + j * width + i);
                    acc[j] += a * kj;
                    acc[4 + j] += b * kj;
                }
            }
            store_sums(acc, s0 + key, s1 + key);
        }
    }
}

// Turns the scores of one row into probabilities relative to its running maximum; keys from `visible` on do not count.
KC_INLINE void soften_row(AttentionTile &tile, int row, int visible) {
    float *s = tile.s + row * KEY_TILE;
    if (visible <= 0) {
        memset(s, 0, KEY_TILE * 4);
        return;
    }
    for (int i = visible < KEY_TILE ? visible : KEY_TILE; i < KEY_TILE; i++) s[i] = -__builtin_inff();
    Floats largest = load<Floats>(s);
    for (int i = LANES; i < KEY_TILE; i += LANES) largest = maximum(largest, load<Floats>(s + i));
    const float peak = max_lanes(largest);
    if (peak > tile.m[row]) {
        const float shrink = exponential(splat(tile.m[row] - peak))[0];
        for (int i = 0; i < tile.padded; i += LANES) {
            float *o = tile.o + row * tile.padded + i;
            store(o, load<Floats>(o) * shrink);
        }
        tile.l[row] *= shrink;
        tile.m[row] = peak;
    }
    Floats sum = {};
    for (int i = 0; i < KEY_TILE; i += LANES) {
        const Floats p = exponential(load<Floats>(s + i) - tile.m[row]);
        store(s + i, p);
        sum += p;
    }
    tile.l[row] += sum_lanes(sum);
}

template <int ROWS> KC_INLINE void add_values_rows(AttentionTile &tile, int row, int keys) {
    const int width = tile.padded;
    const float *p = tile.s + row * KEY_TILE;
    int i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        Floats acc[ROWS][2];
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < 2; j++) acc[r][j] = load<Floats>(tile.o + (row + r) * width + i + j * LANES);
        for (int key = 0; key < keys; key++) {
            const Floats a = load<Floats>(tile.v + key * width + i), b = load<Floats>(tile.v + key * width + i + LANES);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) {
                acc[r][0] += a * p[r * KEY_TILE + key];
                acc[r][1] += b * p[r * KEY_TILE + key];
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < 2; j++) store(tile.o + (row + r) * width + i + j * LANES, acc[r][j]);
    }
    for (; i < width; i += LANES)
        for (int r = 0; r < ROWS; r++) {
            Floats acc = load<Floats>(tile.o + (row + r) * width + i);
            for (int key = 0; key < keys; key++) acc += load<Floats>(tile.v + key * width + i) * p[r * KEY_TILE + key];
            store(tile.o + (row + r) * width + i, acc);
        }
}

void add_values(AttentionTile &tile, int keys) {
    int row = 0;
    for (; row + 4 <= tile.rows; row += 4) add_values_rows<4>(tile, row, keys);
    for (; row + 2 <= tile.rows; row += 2) add_values_rows<2>(tile, row, keys);
    for (; row < tile.rows; row++) add_values_rows<1>(tile, row, keys);
}

void finish_rows(const AttentionCall &call, const AttentionTask &task, const AttentionTile &tile) {
    const int start = call.seq_starts[task.seq];
    for (int row = 0; row < tile.rows; row++) {
        const float *o = tile.o + row * tile.padded;
        if (task.partial) {
            float *to = task.partial + (int64_t)row * (call.width + 2);
            to[0] = tile.m[row];
            to[1] = tile.l[row];
            memcpy(to + 2, o, (size_t)call.width * 4);
            continue;
        }
        const int64_t token = start + task.first_token + row / task.heads;
        float *to = call.out + (token * call.heads + task.first_head + row % task.heads) * call.width;
        const float inverse = 1.0f / tile.l[row];
        for (int i = 0; i < call.width; i++) to[i] = o[i] * inverse;
    }
}

struct AttentionJob {
    const AttentionCall *call;
    const AttentionTask *tasks;
};

void attention_task(void *context, int index, int) {
    const AttentionJob &job = *(const AttentionJob *)context;
    const AttentionCall &call = *job.call;
    const AttentionTask &task = job.tasks[index];
    AttentionTile tile;
    load_queries(call, task, tile);
    const int queries = call.seq_starts[task.seq + 1] - call.seq_starts[task.seq];
    const int first_position = call.context_lens[task.seq] - queries + task.first_token;
    for (int key = task.first_key; key < task.end_key; key += KEY_TILE) {
        const int keys = task.end_key - key < KEY_TILE ? task.end_key - key : KEY_TILE;
        load_keys(call, task, key, keys, tile);
        score_tile(tile);
        for (int row = 0; row < tile.rows; row++) {
            const int visible = first_position + row / task.heads + 1 - key;
            soften_row(tile, row, visible < keys ? visible : keys);
        }
        add_values(tile, keys);
    }
    finish_rows(call, task, tile);
}

// Joins the key ranges of one task: weights e^(m - max m).
void join_splits(const AttentionCall &call, const AttentionTask *parts) {
    const int rows = parts->tokens * parts->heads, start = call.seq_starts[parts->seq];
    for (int row = 0; row < rows; row++) {
        const int64_t offset = (int64_t)row * (call.width + 2);
        float peak = -__builtin_inff(), total = 0;
        for (int i = 0; i < parts->splits; i++) peak = parts[i].partial[offset] > peak ? parts[i].partial[offset] : peak;
        const int64_t token = start + parts->first_token + row / parts->heads;
        float *to = call.out + (token * call.heads + parts->first_head + row % parts->heads) * call.width;
        for (int c = 0; c < call.width; c++) to[c] = 0;
        for (int i = 0; i < parts->splits; i++) {
            const float *from = parts[i].partial + offset;
            const float weight = exponential(splat(from[0] - peak))[0];
            total += weight * from[1];
            for (int c = 0; c < call.width; c++) to[c] += weight * from[2 + c];
        }
        for (int c = 0; c < call.width; c++) to[c] /= total;
    }
}

struct AttentionPlan {  // counts when tasks is null, else fills
    AttentionTask *tasks;
    float *partials;
    int count;
    int64_t partial_floats;
};

void plan_tile(const AttentionCall &call, AttentionTask task, int splits, AttentionPlan &plan) {
    const int end = task.end_key, tiles = (end + KEY_TILE - 1) / KEY_TILE;
    task.splits = splits;
    for (int i = 0; i < splits; i++) {
        task.first_key = (int)((int64_t)tiles * i / splits) * KEY_TILE;
        const int last = (int)((int64_t)tiles * (i + 1) / splits) * KEY_TILE;
        task.end_key = last < end ? last : end;
        task.partial = nullptr;
        if (splits > 1) {
            task.partial = plan.partials + plan.partial_floats;
            plan.partial_floats += (int64_t)task.tokens * task.heads * (call.width + 2);
        }
        if (plan.tasks) plan.tasks[plan.count] = task;
        plan.count++;
    }
}

void plan_attention(const AttentionCall &call, int min_tasks, AttentionPlan &plan) {
    const int group = call.heads / call.kv_heads, heads = group < MAX_ROWS ? group : MAX_ROWS;
    const int run = MAX_ROWS / heads;
    for (int seq = 0; seq < call.seqs; seq++) {
        const int queries = call.seq_starts[seq + 1] - call.seq_starts[seq], context = call.context_lens[seq];
        int splits = 1;
        if (queries <= run && call.seqs * call.kv_heads < min_tasks) {
            splits = (min_tasks + call.seqs * call.kv_heads - 1) / (call.seqs * call.kv_heads);
            if (splits > context / MIN_SPLIT_KEYS) splits = context / MIN_SPLIT_KEYS;
            if (splits < 1) splits = 1;
        }
        // The last tokens see the most keys: they go first, so that no long task is left for the end.
        for (int first = (queries - 1) / run * run; first >= 0 && queries > 0; first -= run)
            for (int kv_head = 0; kv_head < call.kv_heads; kv_head++)
                for (int head = 0; head < group; head += heads) {
                    AttentionTask task;
                    task.seq = seq;
                    task.kv_head = kv_head;
                    task.first_head = kv_head * group + head;
                    task.heads = group - head < heads ? group - head : heads;
                    task.first_token = first;
                    task.tokens = queries - first < run ? queries - first : run;
                    task.end_key = context - queries + first + task.tokens;
                    plan_tile(call, task, splits, plan);
                }
    }
}

void attention(const AttentionCall *call) {
    const int min_tasks = 4 * pool_threads();
    AttentionPlan size = {nullptr, nullptr, 0, 0};
    plan_attention(*call, min_tasks, size);
    const size_t task_bytes = ((size_t)size.count * sizeof(AttentionTask) + 63) & ~(size_t)63;
    uint8_t *memory = (uint8_t *)scratch(task_bytes + (size_t)size.partial_floats * 4);
    AttentionPlan plan = {(AttentionTask *)memory, (float *)(memory + task_bytes), 0, 0};
    plan_attention(*call, min_tasks, plan);
    AttentionJob job{call, plan.tasks};
    pool_run(plan.count, attention_task, &job);
    for (int i = 0; i < plan.count; i += plan.tasks[i].splits)
        if (plan.tasks[i].splits > 1) join_splits(*call, plan.tasks + i);
}
