// y = W x + b from bf16 tiles, and the product of a panel of row groups that the experts use too. See amx.cpp.

// Fewest rows that are worth the expansion; below, AVX-512-VNNI is as fast. Computed, not measured. Per weight and core linear.h takes
// tokens / 80 cycles: of 78 operations on two ports 48 are products of 64 multiply-adds. Here the expansion takes 1/8, half as much
// again for its stores and stalls, and the products tokens / (0.75 * 512), in pairs of tiles. 16 rows: 0.20 against 0.23 cycles;
// 24: 0.30 against 0.27; 32: 0.40 against 0.27. Between 20 and 32 either way costs little. In a pass of the engine all rows of prompts
// are bf16 however few (api.cpp): a rest of a few tokens then costs twice a token of decoding, and no number depends on the cut.
constexpr int AMX_ROWS = 32;

constexpr int MAX_TASK_GROUPS = 16, LEAST_TASK_GROUPS = 4;

inline bool takes(const Part &part) { return part.format == F16 || part.format == BF16 || part.lanes == LANES; }

struct Panel {  // row groups of a part times tiles of tokens -> sums[group][tile of tokens], tiles of f32
    const Part *part;
    int first_group, groups;
    const Rows *x;
    int first_tile, tiles;
    uint8_t *weights, *sums;
};

constexpr int64_t WEIGHT_BYTES = 2 * BLOCK_TILES * TILE;

void multiply_pair(const Panel &p, int group, int groups, int block) {
    const int steps = p.x->block_tiles(block);
    for (int i = 0; i < groups; i++)
        expand_block(*p.part, p.first_group + group + i, block, steps, p.weights + i * BLOCK_TILES * TILE);
    const bool last = group + groups == p.groups;
    const int next_group = p.first_group + (last ? 0 : group + groups), next_block = last ? block + 1 : block;
    if (next_block < p.x->blocks())
        for (int i = 0; i < groups; i++) prefetch_block(*p.part, next_group + i, next_block, p.x->block_tiles(next_block));
    TileProduct product = {};
    product.w = p.weights;
    product.w_next = BLOCK_TILES * TILE;
    product.x_next = (int64_t)steps * TILE;
    product.sums_next = (int64_t)p.tiles * TILE;
    product.steps = steps;
    product.begins = block == 0;
    for (int t = 0; t < p.tiles; t += 2) {
        product.x = p.x->tile(block, p.first_tile + t);
        product.sums = p.sums + ((int64_t)group * p.tiles + t) * TILE;
        const bool two = t + 1 < p.tiles;
        if (groups == 2)
            two ? multiply_tiles<2, 2>(product) : multiply_tiles<1, 2>(product);
        else
            two ? multiply_tiles<2, 1>(product) : multiply_tiles<1, 1>(product);
    }
}

// Blocks of columns outermost: those of all tokens (PASS_TILES tiles: 256 KB) stay in the second-level cache for all row groups.
void multiply_panel(const Panel &p) {
    for (int block = 0; block < p.x->blocks(); block++)
        for (int group = 0; group < p.groups; group += 2) multiply_pair(p, group, p.groups - group < 2 ? 1 : 2, block);
}

inline const uint8_t *sums_of(const Panel &p, int group, int token) {
    return p.sums + ((int64_t)group * p.tiles + token / TILE_TOKENS) * TILE + token % TILE_TOKENS * 64;
}

// An even number of groups per task, so that each thread gets about four tasks (a busy neighbour then costs at most one), within
// bounds: more groups read the activations less often, fewer keep the sums in the second-level cache.
int choose_task_groups(int groups) {
    const int fair = groups / (4 * pool_threads()) & ~1;
    return fair < LEAST_TASK_GROUPS ? LEAST_TASK_GROUPS : fair > MAX_TASK_GROUPS ? MAX_TASK_GROUPS : fair;
}

inline int64_t panel_bytes(int groups, int tiles) { return WEIGHT_BYTES + (int64_t)groups * tiles * TILE; }

// Memory of a task: the caller of the pool (worker 0) has set some aside in its scratch, other threads use their own.
inline uint8_t *task_memory(int worker, uint8_t *callers, int64_t bytes) {
    return worker == 0 ? callers : (uint8_t *)scratch((size_t)bytes);
}

constexpr int MAX_PARTS = 8;

struct LinearJob {
    const Part *parts;
    int first_row[MAX_PARTS], first_task[MAX_PARTS + 1];  // tasks of one pass
    int part_count, task_groups, tokens, out_columns, pass_tiles;
    const float *x, *bias;
    float *out;
    Rows rows;
    uint8_t *callers_memory;
};

void fill_rows_task(void *context, int tile, int) {
    const LinearJob &job = *(const LinearJob *)context;
    const float *x[TILE_TOKENS] = {};
    const int64_t columns = job.parts[0].columns;
    for (int t = 0; t < TILE_TOKENS && tile * TILE_TOKENS + t < job.tokens; t++) x[t] = job.x + (tile * TILE_TOKENS + t) * columns;
    fill_tile(job.rows, tile, x, (int)columns);
}

void write_panel(const LinearJob &job, const Panel &p, int first_row) {
    const int first_token = p.first_tile * TILE_TOKENS, rest = job.tokens - first_token;
    const int tokens = rest < p.tiles * TILE_TOKENS ? rest : p.tiles * TILE_TOKENS;
    for (int t = 0; t < tokens; t++)
        for (int g = 0; g < p.groups; g++) {
            const int row = (p.first_group + g) * LANES, column = first_row + row, left = p.part->rows - row;
            const float *bias = job.bias ? job.bias + column : nullptr;
            float *out = job.out + (int64_t)(first_token + t) * job.out_columns + column;
            const Floats sums = load<Floats>(sums_of(p, g, t));
            if (left >= LANES) {
                store(out, bias ? sums + load<Floats>(bias) : sums);
            } else {
                for (int i = 0; i < left; i++) out[i] = sums[i] + (bias ? bias[i] : 0.0f);
            }
        }
}

void linear_task(void *context, int task, int worker) {
    const LinearJob &job = *(const LinearJob *)context;
    const int per_pass = job.first_task[job.part_count], pass = task / per_pass, place = task % per_pass;
    int part = 0;
    while (place >= job.first_task[part + 1]) part++;
    uint8_t *memory = task_memory(worker, job.callers_memory, panel_bytes(job.task_groups, job.pass_tiles));
    const int group = (place - job.first_task[part]) * job.task_groups, groups = (job.parts[part].rows + LANES - 1) / LANES - group;
    const int first_tile = pass * job.pass_tiles, tiles = job.rows.token_tiles - first_tile;
    const Panel panel = {job.parts + part, group,      groups < job.task_groups ? groups : job.task_groups, &job.rows,
                         first_tile,       tiles < job.pass_tiles ? tiles : job.pass_tiles,                 memory,
                         memory + WEIGHT_BYTES};
    const Tiles held;
    multiply_panel(panel);
    write_panel(job, panel, job.first_row[part]);
}

bool linear(const Part *parts, int part_count, const float *x, int tokens, const float *bias, float *out, bool always) {
    if (tokens < (always ? 1 : AMX_ROWS) || part_count > MAX_PARTS) return false;
    LinearJob job = {};
    int groups = 0;
    for (int p = 0; p < part_count; p++) {
        if (!takes(parts[p])) return false;
        job.first_row[p] = job.out_columns;
        job.out_columns += parts[p].rows;
        groups += (parts[p].rows + LANES - 1) / LANES;
    }
    job.parts = parts;
    job.part_count = part_count;
    job.task_groups = choose_task_groups(groups);
    job.tokens = tokens;
    job.x = x;
    job.bias = bias;
    job.out = out;
    for (int p = 0; p < part_count; p++) {
        const int part_groups = (parts[p].rows + LANES - 1) / LANES;
        job.first_task[p + 1] = job.first_task[p] + (part_groups + job.task_groups - 1) / job.task_groups;
    }
    const int tiles = (tokens + TILE_TOKENS - 1) / TILE_TOKENS, passes = (tiles + PASS_TILES - 1) / PASS_TILES;
    job.pass_tiles = (tiles + passes - 1) / passes;
    job.rows = {nullptr, tiles, tiles_of(parts[0].columns)};
    job.rows.tiles = (uint8_t *)scratch((size_t)(job.rows.bytes() + panel_bytes(job.task_groups, job.pass_tiles)));
    job.callers_memory = job.rows.tiles + job.rows.bytes();
    pool_run(tiles, fill_rows_task, &job);
    pool_run(job.first_task[part_count] * passes, linear_task, &job);
    return true;
}
