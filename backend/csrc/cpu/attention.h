// Causal attention over the pages of a cache of any kind, without a matrix of scores.
//
// The keys of a sequence are cut into chunks of about CHUNK_KEYS, whole blocks counted from its beginning. A row (a query token and
// a query head) is computed chunk by chunk, each from nothing, and its chunks are folded in order into one record. So the order of
// every sum depends on the row's own position alone: its result is the same to the bit alone, in a pass with others, in a prompt of
// any chunks, and on any number of threads. Drafts rely on that.
//
// A task is a run of query tokens, the query heads that share one kv head, and a range of chunks: at most MAX_ROWS rows. It walks
// the keys block by block in tiles of up to KEY_TILE: scores = Q K^T, running maximum m and sum l per row (O shrinks only when m
// grows), O += P V. A few rows take K and V straight from the page; for more they are widened once into a buffer of 16 KB that stays
// in the first cache. Scores are in units of log 2, so that one rounding and a polynomial give the exponential. Few queries over a
// long context are split along the chunks too, so that all threads work.
// Limits: head size <= MAX_WIDTH, any group of heads.

constexpr int MAX_ROWS = 96, MIN_ROWS = 24, CHUNK_KEYS = 512;
constexpr float LOG2_E = 1.44269504088896341f;

struct AttentionTask {
    int seq, kv_head, first_head, heads, first_token, tokens, first_key, end_key, splits;
    float *partial;  // of the first of the `splits` tasks: [chunks][rows] records; null: the task writes the output itself
};

// What a row has gathered over some keys: O[width], m, l.
constexpr int RECORD_EXTRA = 2;

struct AttentionTile {
    alignas(64) float q[MAX_ROWS * MAX_WIDTH];  // blocks of rows, each interleaved [width][rows of the block]
    alignas(64) float o[MAX_ROWS * MAX_WIDTH];   // of the chunk
    alignas(64) float kv[KEY_TILE * MAX_WIDTH];  // K as [width][KEY_TILE], then V as [keys][width]
    alignas(64) float s[MAX_ROWS * KEY_TILE];
    Floats l[MAX_ROWS];  // sums by lane
    float m[MAX_ROWS];
    int rows, row_blocks;
    PageLayout layout;
    alignas(64) float folded[MAX_ROWS * (MAX_WIDTH + RECORD_EXTRA)];  // records of the chunks before
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
}

void begin_chunk(AttentionTile &tile) {
    memset(tile.o, 0, (size_t)tile.rows * tile.layout.width * 4);
    for (int row = 0; row < tile.rows; row++) {
        tile.m[row] = -__builtin_inff();
        tile.l[row] = Floats{};
    }
}

KC_INLINE void empty_record(float *record, int width) {
    record[width] = -__builtin_inff();
    record[width + 1] = 0.0f;
}

// Adds (o, m, l) of later keys to a record: weights 2^(m - max m). Out of line, as soften_row: copies of the code might be compiled
// with other multiply-adds.
__attribute__((noinline)) void fold(float *record, const float *o, float m, float l, int width) {
    if (m == -__builtin_inff()) return;  // none of the keys is visible
    if (record[width] == -__builtin_inff()) {
        memcpy(record, o, (size_t)width * 4);
        record[width] = m;
        record[width + 1] = l;
        return;
    }
    const float before = record[width], peak = m > before ? m : before;
    const Floats keep = power_of_two(splat(before - peak)), take = power_of_two(splat(m - peak));
    for (int i = 0; i < width; i += LANES) store(record + i, load<Floats>(record + i) * keep + load<Floats>(o + i) * take);
    record[width] = peak;
    record[width + 1] = record[width + 1] * keep[0] + l * take[0];
}

// Turns the scores of one row into probabilities relative to its running maximum; those of keys from `visible` on become 0.
// Scores and probabilities are multiplied by the scales of keys and values where the kind of pages has them.
template <bool Scaled>
__attribute__((noinline)) void soften_row(AttentionTile &tile, int row, int visible, int columns, const float *key_scales,
                                          const float *value_scales) {
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
        const Floats score = load<Floats>(s + i);
        Floats p = power_of_two(score - tile.m[row]);
        if (i + LANES > visible) p = score == splat(-__builtin_inff()) ? Floats{} : p;
        sum += p;
        store(s + i, Scaled ? p * load<Floats>(value_scales + i) : p);
    }
    tile.l[row] = sum;
}

template <bool Scaled>
KC_INLINE void soften_rows(const AttentionTask &task, AttentionTile &tile, int start, int rows, int position, int keys,
                           const float *key_scales, const float *value_scales) {
    const int columns = (keys + LANES - 1) / LANES * LANES;
    for (int row = start; row < start + rows; row++) {
        const int visible = position + row / task.heads + 1;
        soften_row<Scaled>(tile, row, visible < keys ? visible : keys, columns, key_scales, value_scales);
    }
}

template <class Source> KC_INLINE void score_block(AttentionTile &tile, const Source &keys, int start, int rows, int columns) {
    const int width = tile.layout.width;
    ScoreProducts<Source>::of[rows - 1](tile.q + start * width, keys, width, tile.s + start * KEY_TILE, columns);
}

template <class Source> KC_INLINE void value_block(AttentionTile &tile, const Source &values, int start, int rows, int keys) {
    const int width = tile.layout.width;
    ValueProducts<Source>::of[rows - 1](tile.s + start * KEY_TILE, values, keys, tile.o + start * width, width);
}

// One tile: the tokens at..at+keys of a page; `position` is that of the task's first query relative to the tile's first key, `next`
// the bytes from the page to that of the next tile.
template <class Kind>
void attend_tile(const AttentionTask &task, AttentionTile &tile, const uint8_t *page, int at, int keys, int position, int64_t next) {
    const int width = tile.layout.width, columns = (keys + LANES - 1) / LANES * LANES;
    const float *key_scales = nullptr, *value_scales = nullptr;
    if constexpr (Kind::scaled) {
        key_scales = Kind::key_scales(tile.layout, page) + at;
        value_scales = Kind::value_scales(tile.layout, page) + at;
    }
    if constexpr (Kind::direct) {
        if (tile.row_blocks == 1) {
            score_block(tile, Kind::keys(tile.layout, page, at, next), 0, tile.rows, columns);
            soften_rows<Kind::scaled>(task, tile, 0, tile.rows, position, keys, key_scales, value_scales);
            return value_block(tile, Kind::values(tile.layout, page, at, next), 0, tile.rows, keys);
        }
    }
    Kind::widen_keys(tile.layout, page, at, columns, next, tile.kv);
    for (int block = 0; block < tile.row_blocks; block++) {
        const int start = block_start(tile, block), rows = block_start(tile, block + 1) - start;
        score_block(tile, Widened{tile.kv, KEY_TILE}, start, rows, columns);
        soften_rows<Kind::scaled>(task, tile, start, rows, position, keys, key_scales, value_scales);
    }
    Kind::widen_values(tile.layout, page, at, keys, next, tile.kv);
    for (int block = 0; block < tile.row_blocks; block++) {
        const int start = block_start(tile, block), rows = block_start(tile, block + 1) - start;
        value_block(tile, Widened{tile.kv, width}, start, rows, keys);
    }
}

KC_INLINE int record_floats(int padded) { return padded + RECORD_EXTRA; }

// The chunk that ends is kept by itself where others compute the chunks before it.
void end_chunk(const AttentionTask &task, AttentionTile &tile, int chunk) {
    const int padded = tile.layout.width, floats = record_floats(padded);
    for (int row = 0; row < tile.rows; row++) {
        float *record = tile.folded + row * floats;
        if (task.partial) {
            record = task.partial + ((int64_t)chunk * tile.rows + row) * floats;
            empty_record(record, padded);
        }
        fold(record, tile.o + row * padded, tile.m[row], sum_lanes(tile.l[row]), padded);
    }
}

// record: destroyed. The rotation is linear, so it is undone once, at the very end.
KC_INLINE void write_row(float *record, int padded, bool rotated, int width, float *to) {
    const float factor = 1.0f / record[padded + 1];
    if (rotated) rotate_row(record, padded);
    for (int i = 0; i < width; i++) to[i] = record[i] * factor;
}

struct AttentionJob {
    const AttentionCall *call;
    const AttentionTask *tasks;
};

KC_INLINE int chunk_size(const Pages &pages) { return (CHUNK_KEYS + pages.block_size - 1) / pages.block_size * pages.block_size; }

template <class Kind> void attention_task(void *context, int index, int) {
    const AttentionJob &job = *(const AttentionJob *)context;
    const AttentionCall &call = *job.call;
    const Pages &pages = *call.pages;
    const AttentionTask &task = job.tasks[index];
    AttentionTile tile;
    tile.layout = page_layout(pages.kind, pages.block_size, pages.width);
    load_queries<Kind>(call, task, tile);
    const int padded = tile.layout.width, floats = record_floats(padded), chunk_keys = chunk_size(pages);
    for (int row = 0; row < tile.rows; row++) empty_record(tile.folded + row * floats, padded);
    const int queries = call.seq_starts[task.seq + 1] - call.seq_starts[task.seq];
    const int first_position = call.context_lens[task.seq] - queries + task.first_token;
    const int32_t *blocks = call.block_tables + (int64_t)task.seq * call.max_blocks;
    for (int key = task.first_key; key < task.end_key;) {
        const int chunk = key / chunk_keys, rest = task.end_key - key, end = key + (rest < chunk_keys ? rest : chunk_keys);
        begin_chunk(tile);
        while (key < end) {
            const int at = key % pages.block_size;
            int keys = pages.block_size - at < KEY_TILE ? pages.block_size - at : KEY_TILE;
            if (keys > end - key) keys = end - key;
            const int block = key / pages.block_size, next = (key + keys < task.end_key ? key + keys : key) / pages.block_size;
            const uint8_t *page = pages.data + blocks[block] * pages.block_stride + task.kv_head * tile.layout.bytes;
            const int64_t ahead = (blocks[next] - blocks[block]) * pages.block_stride;
            attend_tile<Kind>(task, tile, page, at, keys, first_position - key, ahead);
            key += keys;
        }
        end_chunk(task, tile, chunk);
    }
    if (task.partial) return;
    for (int row = 0; row < tile.rows; row++)
        write_row(tile.folded + row * floats, padded, Kind::rotated, pages.width, output_row(call, task, row));
}

// The rows of a task whose chunks were computed by several; does nothing for any but the first of those.
void join_task(void *context, int index, int) {
    const AttentionJob &job = *(const AttentionJob *)context;
    const AttentionTask &task = job.tasks[index];
    if (task.splits == 1 || task.first_key) return;
    const Pages &pages = *job.call->pages;
    const int rows = task.tokens * task.heads, padded = page_layout(pages.kind, pages.block_size, pages.width).width;
    const int chunk_keys = chunk_size(pages), chunks = (job.tasks[index + task.splits - 1].end_key + chunk_keys - 1) / chunk_keys;
    const int floats = record_floats(padded);
    alignas(64) float record[MAX_WIDTH + RECORD_EXTRA];
    for (int row = 0; row < rows; row++) {
        empty_record(record, padded);
        for (int chunk = 0; chunk < chunks; chunk++) {
            const float *from = task.partial + ((int64_t)chunk * rows + row) * floats;
            fold(record, from, from[padded], from[padded + 1], padded);
        }
        write_row(record, padded, pages.kind != PAGES_F16, pages.width, output_row(*job.call, task, row));
    }
}

struct AttentionPlan {  // counts when tasks is null, else fills
    AttentionTask *tasks;
    float *partials;
    int count;
    int64_t partial_floats;
};

void plan_parts(const AttentionCall &call, AttentionTask task, int splits, AttentionPlan &plan) {
    const int end = task.end_key, unit = chunk_size(*call.pages), chunks = (end + unit - 1) / unit;
    task.splits = splits < chunks ? splits : chunks;
    task.partial = nullptr;
    if (task.splits > 1) {
        task.partial = plan.partials + plan.partial_floats;
        const int padded = page_layout(call.pages->kind, call.pages->block_size, call.pages->width).width;
        plan.partial_floats += (int64_t)chunks * task.tokens * task.heads * record_floats(padded);
    }
    for (int i = 0; i < task.splits; i++) {
        task.first_key = (int)((int64_t)chunks * i / task.splits) * unit;
        const int64_t last = (int64_t)chunks * (i + 1) / task.splits * unit;
        task.end_key = last < end ? (int)last : end;
        if (plan.tasks) plan.tasks[plan.count] = task;
        plan.count++;
    }
}

// run: tokens of a task. Few queries are one run, so that all of them share each key, and their keys are split.
void plan_sequence(const AttentionCall &call, int seq, int run, int64_t part_keys, AttentionPlan &plan) {
    const int kv_heads = call.pages->kv_heads, group = call.heads / kv_heads, heads = group < MAX_ROWS ? group : MAX_ROWS;
    const int queries = call.seq_starts[seq + 1] - call.seq_starts[seq], context = call.context_lens[seq];
    const bool split = queries <= MAX_ROWS / heads && context > part_keys;
    const int64_t splits = split ? (context + part_keys - 1) / part_keys : 1;
    if (split) run = queries;
    // The last tokens see the most keys: they go first, so that no long task is left for the end.
    for (int first = queries > 0 ? (queries - 1) / run * run : -1; first >= 0; first -= run)
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
    const int run = (int)(rows / heads) < 1 ? 1 : (int)(rows / heads), chunk_keys = chunk_size(*call.pages);
    int64_t part_keys = (keys * kv_heads + min_tasks - 1) / min_tasks;
    if (part_keys < chunk_keys) part_keys = chunk_keys;
    for (int seq = 0; seq < call.seqs; seq++) plan_sequence(call, seq, run, part_keys, plan);
}

// Below so many floats of records a second thread costs more than it brings.
constexpr int64_t MIN_PARALLEL_JOIN = 65536;

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
    if (plan.partial_floats >= MIN_PARALLEL_JOIN) return pool_run(plan.count, join_task, &job);
    for (int i = 0; i < plan.count; i++) join_task(&job, i, 0);
}
