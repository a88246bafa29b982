// Causal attention over the pages of a cache of any kind, without a matrix of scores.
//
// A task is a run of query tokens, the query heads that share one kv head, and a range of keys: at most MAX_ROWS rows. It walks
// the keys block by block in tiles of up to KEY_TILE: widen K once for all rows into a buffer of 16 KB that stays in the first
// cache, scores = Q K^T, running maximum m and sum l per row (O shrinks only when m grows), widen V into the same buffer,
// O += P V. Scores are in units of log 2, so that one rounding and a polynomial give the exponential. Few queries over a long
// context are split along the keys too, so that all threads work; the parts are joined by their m and l.
// Limits: head size <= MAX_WIDTH, any group of heads.

constexpr int MAX_ROWS = 96, MIN_ROWS = 24, MIN_SPLIT_KEYS = 256;
constexpr float LOG2_E = 1.44269504088896341f;

struct AttentionTask {
    int seq, kv_head, first_head, heads, first_token, tokens, first_key, end_key, splits;
    float *partial;  // rows x (m, l, O[width]), or null: the task writes the output itself
};

struct AttentionTile {
    alignas(64) float q[MAX_ROWS * MAX_WIDTH];  // blocks of rows, each interleaved [width][rows of the block]
    alignas(64) float o[MAX_ROWS * MAX_WIDTH];
    alignas(64) float kv[KEY_TILE * MAX_WIDTH];  // K as [width][KEY_TILE], then V as [keys][width]
    alignas(64) float s[MAX_ROWS * KEY_TILE];
    Floats l[MAX_ROWS];  // sums by lane
    float m[MAX_ROWS];
    int rows, row_blocks;
    PageLayout layout;
};

// First row of a block: sizes differ by one at most, so that the last one is not a rest of one row.
KC_INLINE int block_start(const AttentionTile &tile, int block) { return tile.rows * block / tile.row_blocks; }

KC_INLINE const float *query_row(const AttentionCall &call, const AttentionTask &task, int row) {
    const int token = call.seq_starts[task.seq] + task.first_token + row / task.heads;
    return call.q + token * call.q_stride + (int64_t)(task.first_head + row % task.heads) * call.pages->width;
}

KC_INLINE float *output_row(const AttentionCall &call, const AttentionTask &task, int row) {
    const int64_t token = call.seq_starts[task.seq] + task.first_token + row / task.heads;
    return call.out + (token * call.heads + task.first_head + row % task.heads) * call.pages->width;
}

template <class Kind> void load_queries(const AttentionCall &call, const AttentionTask &task, AttentionTile &tile) {
    const int width = call.pages->width, padded = tile.layout.width;
    const float scale = call.scale * LOG2_E;
    tile.rows = task.tokens * task.heads;
    tile.row_blocks = (tile.rows + MAX_BLOCK_ROWS - 1) / MAX_BLOCK_ROWS;
    alignas(64) float row[MAX_WIDTH];
    for (int block = 0; block < tile.row_blocks; block++) {
        const int start = block_start(tile, block), rows = block_start(tile, block + 1) - start;
        for (int r = 0; r < rows; r++) {
            const float *from = query_row(call, task, start + r);
            for (int i = 0; i < padded; i++) row[i] = i < width ? from[i] * scale : 0.0f;
            if (Kind::rotated) rotate_row(row, padded);
            float *to = tile.q + start * padded + r;
            for (int i = 0; i < padded; i++) to[i * rows] = row[i];
        }
    }
    memset(tile.o, 0, (size_t)tile.rows * padded * 4);
    for (int row = 0; row < tile.rows; row++) {
        tile.m[row] = -__builtin_inff();
        tile.l[row] = Floats{};
    }
}

// Turns the scores of one row into probabilities relative to its running maximum; keys from `visible` on do not count.
// Scores and probabilities are multiplied by the scales of keys and values where the kind of pages has them.
template <bool Scaled>
KC_INLINE void soften_row(AttentionTile &tile, int row, int visible, int columns, const float *key_scales, const float *value_scales) {
    float *s = tile.s + row * KEY_TILE;
    if (visible <= 0) {
        memset(s, 0, KEY_TILE * 4);
        return;
    }
    if (Scaled)
        for (int i = 0; i < columns; i += LANES) store(s + i, load<Floats>(s + i) * load<Floats>(key_scales + i));
    for (int i = visible; i < columns; i++) s[i] = -__builtin_inff();
    Floats largest = load<Floats>(s);
    for (int i = LANES; i < columns; i += LANES) largest = maximum(largest, load<Floats>(s + i));
    const float peak = max_lanes(largest);
    if (peak > tile.m[row]) {
        const float shrink = power_of_two(splat(tile.m[row] - peak))[0];
        for (int i = 0; i < tile.layout.width; i += LANES) {
            float *o = tile.o + row * tile.layout.width + i;
            store(o, load<Floats>(o) * shrink);
        }
        tile.l[row] *= shrink;
        tile.m[row] = peak;
    }
    Floats sum = tile.l[row];
    for (int i = 0; i < columns; i += LANES) {
        const Floats p = power_of_two(load<Floats>(s + i) - tile.m[row]);
        sum += p;
        store(s + i, Scaled ? p * load<Floats>(value_scales + i) : p);
    }
    tile.l[row] = sum;
}

// One tile: the tokens at..at+keys of a page; `position` is that of the task's first query relative to the tile's first key.
template <class Kind>
void attend_tile(const AttentionTask &task, AttentionTile &tile, const uint8_t *page, int at, int keys, int position) {
    const int width = tile.layout.width, columns = (keys + LANES - 1) / LANES * LANES;
    const float *key_scales = nullptr, *value_scales = nullptr;
    if constexpr (Kind::scaled) {
        key_scales = Kind::key_scales(tile.layout, page) + at;
        value_scales = Kind::value_scales(tile.layout, page) + at;
    }
    Kind::load_keys(tile.layout, page, at, columns, tile.kv);
    for (int block = 0; block < tile.row_blocks; block++) {
        const int start = block_start(tile, block), rows = block_start(tile, block + 1) - start;
        Products::scores[rows - 1](tile.q + start * width, tile.kv, width, tile.s + start * KEY_TILE, columns);
        for (int row = start; row < start + rows; row++) {
            const int visible = position + row / task.heads + 1;
            soften_row<Kind::scaled>(tile, row, visible < keys ? visible : keys, columns, key_scales, value_scales);
        }
    }
    Kind::load_values(tile.layout, page, at, keys, tile.kv);
    for (int block = 0; block < tile.row_blocks; block++) {
        const int start = block_start(tile, block), rows = block_start(tile, block + 1) - start;
        Products::values[rows - 1](tile.s + start * KEY_TILE, tile.kv, keys, tile.o + start * width, width);
    }
}

// o: [padded], destroyed. The rotation is linear, so it is undone once, at the very end.
KC_INLINE void write_row(float *o, int padded, bool rotated, float factor, int width, float *to) {
    if (rotated) rotate_row(o, padded);
    for (int i = 0; i < width; i++) to[i] = o[i] * factor;
}

void finish_rows(const AttentionCall &call, const AttentionTask &task, AttentionTile &tile, bool rotated) {
    const int padded = tile.layout.width;
    for (int row = 0; row < tile.rows; row++) {
        float *o = tile.o + row * padded, l = sum_lanes(tile.l[row]);
        if (task.partial) {
            float *to = task.partial + (int64_t)row * (padded + 2);
            to[0] = tile.m[row];
            to[1] = l;
            memcpy(to + 2, o, (size_t)padded * 4);
        } else {
            write_row(o, padded, rotated, 1.0f / l, call.pages->width, output_row(call, task, row));
        }
    }
}

struct AttentionJob {
    const AttentionCall *call;
    const AttentionTask *tasks;
};

template <class Kind> void attention_task(void *context, int index, int) {
    const AttentionJob &job = *(const AttentionJob *)context;
    const AttentionCall &call = *job.call;
    const Pages &pages = *call.pages;
    const AttentionTask &task = job.tasks[index];
    AttentionTile tile;
    tile.layout = page_layout(pages.kind, pages.block_size, pages.width);
    load_queries<Kind>(call, task, tile);
    const int queries = call.seq_starts[task.seq + 1] - call.seq_starts[task.seq];
    const int first_position = call.context_lens[task.seq] - queries + task.first_token;
    const int32_t *blocks = call.block_tables + (int64_t)task.seq * call.max_blocks;
    for (int key = task.first_key; key < task.end_key;) {
        const int at = key % pages.block_size;
        int keys = pages.block_size - at < KEY_TILE ? pages.block_size - at : KEY_TILE;
        if (keys > task.end_key - key) keys = task.end_key - key;
        const uint8_t *page = pages.data + blocks[key / pages.block_size] * pages.block_stride + task.kv_head * tile.layout.bytes;
        attend_tile<Kind>(task, tile, page, at, keys, first_position - key);
        key += keys;
    }
    finish_rows(call, task, tile, Kind::rotated);
}

// Joins the key ranges of one task: weights 2^(m - max m).
void join_splits(const AttentionCall &call, const AttentionTask *parts, bool rotated) {
    const int rows = parts->tokens * parts->heads, width = call.pages->width;
    const int padded = page_layout(call.pages->kind, call.pages->block_size, width).width;
    for (int row = 0; row < rows; row++) {
        const int64_t offset = (int64_t)row * (padded + 2);
        float peak = -__builtin_inff(), total = 0;
        for (int i = 0; i < parts->splits; i++) peak = parts[i].partial[offset] > peak ? parts[i].partial[offset] : peak;
        alignas(64) float sum[MAX_WIDTH] = {};
        for (int i = 0; i < parts->splits; i++) {
            const float *from = parts[i].partial + offset;
            const float weight = power_of_two(splat(from[0] - peak))[0];
            total += weight * from[1];
            for (int c = 0; c < padded; c++) sum[c] += weight * from[2 + c];
        }
        write_row(sum, padded, rotated, 1.0f / total, width, output_row(call, *parts, row));
    }
}

struct AttentionPlan {  // counts when tasks is null, else fills
    AttentionTask *tasks;
    float *partials;
    int count;
    int64_t partial_floats;
};

// The keys of a part begin at a block: a tile must not cross one.
void plan_parts(const AttentionCall &call, AttentionTask task, int splits, AttentionPlan &plan) {
    const int end = task.end_key, unit = call.pages->block_size, blocks = (end + unit - 1) / unit;
    if (splits > blocks) splits = blocks;
    task.splits = splits;
    for (int i = 0; i < splits; i++) {
        task.first_key = (int)((int64_t)blocks * i / splits) * unit;
        const int64_t last = (int64_t)blocks * (i + 1) / splits * unit;
        task.end_key = last < end ? (int)last : end;
        task.partial = nullptr;
        if (splits > 1) {
            task.partial = plan.partials + plan.partial_floats;
            const int padded = page_layout(call.pages->kind, unit, call.pages->width).width;
            plan.partial_floats += (int64_t)task.tokens * task.heads * (padded + 2);
        }
        if (plan.tasks) plan.tasks[plan.count] = task;
        plan.count++;
    }
}

void plan_sequence(const AttentionCall &call, int seq, int run, int64_t part_keys, AttentionPlan &plan) {
    const int kv_heads = call.pages->kv_heads, group = call.heads / kv_heads, heads = group < MAX_ROWS ? group : MAX_ROWS;
    const int queries = call.seq_starts[seq + 1] - call.seq_starts[seq], context = call.context_lens[seq];
    const int64_t splits = queries <= run && context > part_keys ? (context + part_keys - 1) / part_keys : 1;
    // The last tokens see the most keys: they go first, so that no long task is left for the end.
    for (int first = (queries - 1) / run * run; first >= 0 && queries > 0; first -= run)
        for (int kv_head = 0; kv_head < kv_heads; kv_head++)
            for (int head = 0; head < group; head += heads) {
                AttentionTask task;
                task.seq = seq;
                task.kv_head = kv_head;
                task.first_head = kv_head * group + head;
                task.heads = group - head < heads ? group - head : heads;
                task.first_token = first;
                task.tokens = queries - first < run ? queries - first : run;
                task.end_key = context - queries + first + task.tokens;
                plan_parts(call, task, (int)splits, plan);
            }
}

// min_tasks: enough for all threads to end at about the same time. Many rows share the work of widening, so rows shrink for
// it only while the queries are few, and keys are split only where one run holds all queries.
void plan_attention(const AttentionCall &call, int min_tasks, AttentionPlan &plan) {
    const int kv_heads = call.pages->kv_heads, group = call.heads / kv_heads, heads = group < MAX_ROWS ? group : MAX_ROWS;
    int64_t queries = call.seq_starts[call.seqs], keys = 0;
    for (int seq = 0; seq < call.seqs; seq++) keys += call.context_lens[seq];
    int64_t rows = queries * group * kv_heads / min_tasks;
    rows = rows < MIN_ROWS ? MIN_ROWS : rows > MAX_ROWS ? MAX_ROWS : rows;
    const int run = (int)(rows / heads) < 1 ? 1 : (int)(rows / heads);
    int64_t part_keys = (keys * kv_heads + min_tasks - 1) / min_tasks;
    if (part_keys < MIN_SPLIT_KEYS) part_keys = MIN_SPLIT_KEYS;
    for (int seq = 0; seq < call.seqs; seq++) plan_sequence(call, seq, run, part_keys, plan);
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
    const int kind = call->pages->kind;
    pool_run(plan.count,
             kind == PAGES_INT8   ? attention_task<BytePages>
             : kind == PAGES_INT4 ? attention_task<NibblePages>
                                  : attention_task<HalfPages>,
             &job);
    for (int i = 0; i < plan.count; i += plan.tasks[i].splits)
        if (plan.tasks[i].splits > 1) join_splits(*call, plan.tasks + i, kind != PAGES_F16);
}
