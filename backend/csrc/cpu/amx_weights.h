// Packed weights as tiles of bf16, 16 rows (one row group) x 32 columns.
//
// A quad holds four columns of 16 rows as bytes, one row per 32-bit lane. One vpermb spreads two columns of eight rows over 16
// lanes and merges each byte, an integer below 128, into the mantissa of 128.0f: that makes the float 128 + q without a
// conversion, and one fused multiply-add the weight, (128 + q) * scale + (offset - 128 * scale). Two such vectors of eight rows are
// rounded by one instruction into 16 pairs, which is a row of the tile. Per quad (64 weights) these are 4 permutations, 4
// multiply-adds and 2 roundings of 3 operations each, with the unpacking about 16 operations on two ports: 1/8 cycle per weight.
// Q8_0 takes whole signed bytes, moved to the top of a lane and converted; 2^-24 is in its scale.

constexpr float BASE = 128.0f, TOP = 5.9604644775390625e-8f;  // 2^-24

struct Picks {  // [columns 0-1 or 2-3][rows 0-7 or 8-15]: for each lane the byte of the quad
    uint8_t byte[2][2][64];
    constexpr explicit Picks(int place) : byte() {
        for (int half = 0; half < 2; half++)
            for (int side = 0; side < 2; side++)
                for (int lane = 0; lane < 16; lane++)
                    byte[half][side][4 * lane + place] = (uint8_t)((8 * side + lane / 2) * 4 + 2 * half + lane % 2);
    }
};

alignas(64) constexpr Picks MIDDLE{2}, HIGHEST{3};

struct Spread {  // [rows 0-7 or 8-15]: each twice
    int32_t lane[2][16];
    constexpr Spread() : lane() {
        for (int side = 0; side < 2; side++)
            for (int i = 0; i < 16; i++) lane[side][i] = 8 * side + i / 2;
    }
};

alignas(64) constexpr Spread TWICE;

// 128 + the chosen bytes.
KC_INLINE Floats pick_unsigned(Bytes quad, int half, int side) {
    const Bytes order = load<Bytes>(MIDDLE.byte[half][side]), base = bits<Bytes>(splat(BASE));
#if defined(KC_NATIVE_AVX512)
    const __m512i from = bits<__m512i>(quad), places = bits<__m512i>(order);
    return bits<Floats>(_mm512_mask_permutexvar_epi8(bits<__m512i>(base), 0x4444444444444444, places, from));
#else
    return bits<Floats>(emulated_permute_bytes(base, 0x4444444444444444, order, quad));
#endif
}

// 2^24 times the chosen bytes, which are signed.
KC_INLINE Floats pick_signed(Bytes quad, int half, int side) {
    const Bytes order = load<Bytes>(HIGHEST.byte[half][side]);
#if defined(KC_NATIVE_AVX512)
    return to_floats(bits<Ints>(_mm512_maskz_permutexvar_epi8(0x8888888888888888, bits<__m512i>(order), bits<__m512i>(quad))));
#else
    return to_floats(bits<Ints>(emulated_permute_bytes(Bytes{}, 0x8888888888888888, order, quad)));
#endif
}

KC_INLINE Floats spread(Floats of_rows, int side) {
    const Ints order = load<Ints>(TWICE.lane[side]);
#if defined(KC_NATIVE_AVX512)
    return bits<Floats>(_mm512_permutexvar_ps(bits<__m512i>(order), bits<__m512>(of_rows)));
#else
    return emulated_permute(of_rows, order);
#endif
}

// Rows of a tile from COUNT quads; weight = scale * q + offset of its row.
template <int COUNT, bool SIGNED> KC_INLINE void expand_quads(const Bytes *w, Floats scale, Floats offset, uint8_t *to) {
    const Floats by = SIGNED ? scale * TOP : scale, plus = SIGNED ? offset : offset - BASE * scale;
    const Floats scales[2] = {spread(by, 0), spread(by, 1)}, offsets[2] = {spread(plus, 0), spread(plus, 1)};
#pragma GCC unroll 8
    for (int j = 0; j < COUNT; j++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            Floats side[2];
#pragma GCC unroll 2
            for (int s = 0; s < 2; s++)
                side[s] = (SIGNED ? pick_signed(w[j], half, s) : pick_unsigned(w[j], half, s)) * scales[s] + offsets[s];
            store(to + (2 * j + half) * 64, round_pairs(side[0], side[1]));
        }
}

constexpr float CENTRE = 32.0f;  // Q6_K stores w + 32

// A block of 256 columns of a K-quant: eight tiles.
template <class F> void expand_wide(const uint8_t *packed, uint8_t *to) {
    typedef typename F::Tile Tile;
    const Floats d = load_halves(packed + Tile::d * LANES);
    Bytes w[8];
    for (int pair = 0; pair < 128 / F::scale_columns; pair++) {
        const Ints pairs = bits<Ints>(F::scale_pair(packed, pair));
        const Floats scales[2] = {d * to_floats(pairs << 16 >> 16), d * to_floats(pairs >> 16)};
        if constexpr (F::has_minimum) {
            const Floats dmin = load_halves(packed + Tile::dmin * LANES);
            const Ints minimums = bits<Ints>(F::minimum_pair(packed, pair));
            const Floats offsets[2] = {-(dmin * to_floats(minimums & 0xffff)), -(dmin * to_floats(minimums >> 16))};
            for (int i = 0; i < 2; i++) {
                F::quads(packed, 2 * pair + i, w);
                expand_quads<8, false>(w, scales[i], offsets[i], to + (2 * pair + i) * TILE);
            }
        } else {
            F::quads(packed, pair, w);
            for (int i = 0; i < 2; i++)
                expand_quads<4, false>(w + 4 * i, scales[i], scales[i] * -CENTRE, to + pair * TILE + i * TILE / 2);
        }
    }
}

// 32 columns of the other quantised formats: one tile.
template <class F> void expand_narrow(const uint8_t *packed, uint8_t *to) {
    Bytes w[8];
    F::quads(packed, w);
    const Floats d = F::scales(packed);
    Floats offset;
    if constexpr (F::has_minimum)
        offset = F::minimums(packed);
    else
        offset = F::is_signed ? Floats{} : d * (float)-F::offset;
    expand_quads<8, F::is_signed>(w, d, offset, to);
}

struct Zip {  // [first or second half]: a0 b0 a1 b1 ..., b counted from 16
    int32_t lane[2][16];
    constexpr Zip() : lane() {
        for (int side = 0; side < 2; side++)
            for (int i = 0; i < 16; i++) lane[side][i] = 8 * side + i / 2 + i % 2 * 16;
    }
};

alignas(64) constexpr Zip ZIP;

KC_INLINE Unsigned interleave(Unsigned a, Unsigned b, int side) {
    const Ints order = load<Ints>(ZIP.lane[side]);
#if defined(KC_NATIVE_AVX512)
    return bits<Unsigned>(_mm512_permutex2var_epi32(bits<__m512i>(a), bits<__m512i>(order), bits<__m512i>(b)));
#else
    return emulated_permute_two(a, order, b);
#endif
}

// One round turns the eight bits of an element's place (row, lane) by one; four exchange row and lane.
KC_INLINE void transpose(Unsigned rows[16]) {
    for (int round = 0; round < 4; round++) {
        Unsigned next[16];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            next[2 * i] = interleave(rows[i], rows[i + 8], 0);
            next[2 * i + 1] = interleave(rows[i], rows[i + 8], 1);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) rows[i] = next[i];
    }
}

// 32 columns of F16 or BF16, plain rows as in the file; zero past the last row and column.
void expand_dense(const Part &part, int first_row, int column, uint8_t *to) {
    Unsigned rows[16];
    const int rest = part.columns - column, count = rest < TILE_COLUMNS ? rest : TILE_COLUMNS;
    for (int r = 0; r < 16; r++) {
        uint8_t padded[64] = {};
        const uint8_t *from = part.data + ((int64_t)(first_row + r) * part.columns + column) * 2;
        if (first_row + r >= part.rows || count < TILE_COLUMNS) {
            if (first_row + r < part.rows) __builtin_memcpy(padded, from, (size_t)count * 2);
            from = padded;
        }
        rows[r] = part.format == F16 ? bits<Unsigned>(round_pairs(load_halves(from), load_halves(from + 32))) : load<Unsigned>(from);
    }
    transpose(rows);
    for (int p = 0; p < 16; p++) store(to + p * 64, rows[p]);
}

inline int64_t packed_block_bytes(const Part &part) { return (int64_t)tile_row_bytes(part.format) * LANES; }

// The packed bytes of a block of 256 columns (one, or up to eight tiles of 32) of a row group; quantised formats.
inline const uint8_t *packed_block(const Part &part, int group, int block) {
    const int columns = block_columns(part.format);
    const int64_t first = (int64_t)group * (part.columns / columns) + (int64_t)block * (BLOCK_COLUMNS / columns);
    return part.data + first * packed_block_bytes(part);
}

template <class F> void expand_all(const uint8_t *packed, int64_t bytes, int tiles, uint8_t *to) {
    for (int k = 0; k < tiles; k++) expand_narrow<F>(packed + k * bytes, to + k * TILE);
}

// `tiles` tiles of a row group from column 256 * block on.
void expand_block(const Part &part, int group, int block, int tiles, uint8_t *to) {
    if (part.lanes == 0) {
        for (int k = 0; k < tiles; k++) expand_dense(part, group * LANES, block * BLOCK_COLUMNS + k * TILE_COLUMNS, to + k * TILE);
        return;
    }
    const uint8_t *packed = packed_block(part, group, block);
    const int64_t bytes = packed_block_bytes(part);
    switch (part.format) {
    case Q4_K: return expand_wide<FormatQ4_K>(packed, to);
    case Q5_K: return expand_wide<FormatQ5_K>(packed, to);
    case Q6_K: return expand_wide<FormatQ6_K>(packed, to);
    case Q4_0: return expand_all<FormatQ4_0>(packed, bytes, tiles, to);
    case INT4: return expand_all<FormatINT4>(packed, bytes, tiles, to);
    case Q4_1: return expand_all<FormatQ4_1>(packed, bytes, tiles, to);
    case Q5_0: return expand_all<FormatQ5_0>(packed, bytes, tiles, to);
    case Q5_1: return expand_all<FormatQ5_1>(packed, bytes, tiles, to);
    default: return expand_all<FormatQ8_0>(packed, bytes, tiles, to);
    }
}

// Asks for the packed bytes that are expanded next, while the products before it run.
void prefetch_block(const Part &part, int group, int block, int tiles) {
    if (part.lanes == 0) return;
    const uint8_t *packed = packed_block(part, group, block);
    const int64_t bytes = packed_block_bytes(part) * (block_columns(part.format) == BLOCK_COLUMNS ? 1 : tiles);
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(packed + line);
}
