// Tiles in memory and in registers. A tile is 16 rows of 64 bytes, one after another (1 KB):
//   activations: a row is a token, 32 columns bf16
//   weights    : a row is a pair of columns, of 16 rows of the matrix the two bf16
//   sums       : a row is a token, 16 rows of the matrix f32

constexpr int TILE = 1024, TILE_TOKENS = 16, TILE_COLUMNS = 32;
constexpr int BLOCK_TILES = 8, BLOCK_COLUMNS = BLOCK_TILES * TILE_COLUMNS;  // columns between two stores of the sums
constexpr int PASS_TILES = 32;  // tiles of tokens that one expansion of the weights serves

struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// In static storage because compilers believe that ldtilecfg reads only its first eight bytes and may leave the rest of a local
// copy unwritten; aligned to a cache line.
alignas(64) constexpr TileConfig CONFIG = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Tile registers for the length of a task: a thread without work must not hold them, or the system would save 8 KB of them at each
// switch and the core could not sleep deeply. Permission is the process's (amx_state), but each thread asks once more:
// it costs one system call and turns a permission lost by then into a message instead of an illegal instruction.
struct Tiles {
    Tiles() {
        static thread_local bool asked = false;
        if (!asked) amx_require_permission();
        asked = true;
        _tile_loadconfig(&CONFIG);
    }
    ~Tiles() { _tile_release(); }
};

inline int tiles_of(int columns) { return (columns + TILE_COLUMNS - 1) / TILE_COLUMNS; }

// Tile loads are opaque to the compiler: what they read must be in memory before, and no store may wander past them.
KC_INLINE void settle_memory() { __asm__ volatile("" ::: "memory"); }

// 32 floats as a row of bf16: `low` are the first 16.
KC_INLINE Words round_pairs(Floats low, Floats high) {
#if defined(KC_NATIVE_AVX512)
    return bits<Words>(_mm512_cvtne2ps_pbh(bits<__m512>(high), bits<__m512>(low)));
#else
    return bits<Words>(emulated_round_pairs(low, high));
#endif
}

// Activations of some tokens: [block of columns][tile of tokens][tile of columns], zero past the last token and column.
struct Rows {
    uint8_t *tiles;
    int token_tiles, column_tiles;
    int64_t bytes() const { return (int64_t)token_tiles * column_tiles * TILE; }
    int block_tiles(int block) const {
        const int rest = column_tiles - block * BLOCK_TILES;
        return rest < BLOCK_TILES ? rest : BLOCK_TILES;
    }
    uint8_t *tile(int block, int token_tile) const {
        return tiles + ((int64_t)block * BLOCK_TILES * token_tiles + (int64_t)token_tile * block_tiles(block)) * TILE;
    }
    int blocks() const { return (column_tiles + BLOCK_TILES - 1) / BLOCK_TILES; }
};

// The 32 columns of x from `column` on, of which `columns` exist.
KC_INLINE Words round_columns(const float *x, int column, int columns) {
    if (column + TILE_COLUMNS <= columns) return round_pairs(load<Floats>(x + column), load<Floats>(x + column + LANES));
    alignas(64) float rest[TILE_COLUMNS] = {};
    __builtin_memcpy(rest, x + column, (size_t)(columns - column) * 4);
    return round_pairs(load<Floats>(rest), load<Floats>(rest + LANES));
}

// x: of each token of the tile its row; null past the last token.
void fill_tile(const Rows &to, int token_tile, const float *const *x, int columns) {
    for (int block = 0; block < to.blocks(); block++) {
        uint8_t *tile = to.tile(block, token_tile);
        for (int k = 0; k < to.block_tiles(block); k++, tile += TILE)
            for (int t = 0; t < TILE_TOKENS; t++)
                store(tile + t * 64, x[t] ? round_columns(x[t], (block * BLOCK_TILES + k) * TILE_COLUMNS, columns) : Words{});
    }
}

struct TileProduct {  // up to two tiles of tokens times up to two row groups over one block of columns
    const uint8_t *x, *w;
    int64_t x_next, w_next;  // from a tile of tokens, of a row group, to the next
    int steps;               // tiles along the columns
    uint8_t *sums;           // tiles of tokens are neighbours
    int64_t sums_next;       // from a row group to the next
    bool begins;
};

// Registers: 0 to 3 the sums (token tile 0, 1 of row group 0, then of row group 1), 4 and 5 tokens, 6 and 7 weights.
template <int T, int R> KC_INLINE void load_sums(const TileProduct &p) {
    _tile_loadd(0, p.sums, 64);
    if constexpr (T == 2) _tile_loadd(1, p.sums + TILE, 64);
    if constexpr (R == 2) _tile_loadd(2, p.sums + p.sums_next, 64);
    if constexpr (T == 2 && R == 2) _tile_loadd(3, p.sums + p.sums_next + TILE, 64);
}

template <int T, int R> KC_INLINE void store_sums(const TileProduct &p) {
    _tile_stored(0, p.sums, 64);
    if constexpr (T == 2) _tile_stored(1, p.sums + TILE, 64);
    if constexpr (R == 2) _tile_stored(2, p.sums + p.sums_next, 64);
    if constexpr (T == 2 && R == 2) _tile_stored(3, p.sums + p.sums_next + TILE, 64);
}

KC_INLINE void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Each sum is due again after four products of 16 cycles, more than the 52 that one takes to come out.
template <int T, int R> void multiply_tiles(const TileProduct &p) {
    settle_memory();
    if (p.begins)
        zero_sums();
    else
        load_sums<T, R>(p);
    const uint8_t *x = p.x, *w = p.w;
    for (int step = 0; step < p.steps; step++, x += TILE, w += TILE) {
        _tile_loadd(4, x, 64);
        _tile_loadd(6, w, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (T == 2) {
            _tile_loadd(5, x + p.x_next, 64);
            _tile_dpbf16ps(1, 5, 6);
        }
        if constexpr (R == 2) {
            _tile_loadd(7, w + p.w_next, 64);
            _tile_dpbf16ps(2, 4, 7);
        }
        if constexpr (T == 2 && R == 2) _tile_dpbf16ps(3, 5, 7);
    }
    store_sums<T, R>(p);
    settle_memory();
}

// The rate of tile products from registers: the yardstick. 8 products of 16 x 16 x 32 multiply-adds per repetition.
void multiply_tile_chains(void *context, int, int) {
    const int64_t repetitions = *(const int64_t *)context;
    alignas(64) uint16_t values[TILE / 2];
    for (int i = 0; i < TILE / 2; i++) values[i] = (uint16_t)(0x3c00 | (i * 37 & 0x83ff));  // about +-0.01, no denormals
    const Tiles held;
    settle_memory();
    zero_sums();
    _tile_loadd(4, values, 64);
    _tile_loadd(5, values, 64);
    _tile_loadd(6, values, 64);
    _tile_loadd(7, values, 64);
    for (int64_t n = 0; n < repetitions; n++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    alignas(64) uint8_t sums[TILE];
    _tile_stored(0, sums, 64);
    settle_memory();
}

void multiply_probe(int64_t repetitions) { pool_run(pool_threads(), multiply_tile_chains, &repetitions); }
