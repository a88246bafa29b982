// How each packed format turns into vectors: quads of a group as unsigned bytes, scale pairs as words. See layout.h.

KC_INLINE void nibble_quads(const uint8_t *tile, int group, Bytes w[8]) {
    const Bytes mask = Bytes{} + 15;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const Bytes v = load<Bytes>(tile + (group * 4 + i) * VECTOR);
        w[i] = v & mask;
        w[4 + i] = bits<Bytes>(bits<Halves>(v) >> 4) & mask;
    }
}

// Adds 16 where a bit of the vector is set: bit j of a byte belongs to quad j.
KC_INLINE void fifth_bits(const uint8_t *from, Bytes w[8]) {
    const Halves high = load<Halves>(from);
    const Bytes mask = Bytes{} + 16;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) w[j] |= bits<Bytes>(j < 5 ? high << (4 - (j < 5 ? j : 4)) : high >> (j < 5 ? 0 : j - 4)) & mask;
}

struct FormatQ4_K {
    typedef TileQ4_K Tile;
    static constexpr int max = 15, scale_columns = 32;
    static constexpr bool has_minimum = true;
    KC_INLINE void quads(const uint8_t *tile, int group, Bytes w[8]) { nibble_quads(tile, group, w); }
    KC_INLINE Words scale_pair(const uint8_t *tile, int pair) {
        return widen(load<NarrowBytes>(tile + Tile::scales * LANES + pair * LANES * 2));
    }
    KC_INLINE Words minimum_pair(const uint8_t *tile, int pair) {
        return widen(load<NarrowBytes>(tile + Tile::minimums * LANES + pair * LANES * 2));
    }
};

struct FormatQ5_K {
    typedef TileQ5_K Tile;
    static constexpr int max = 31, scale_columns = 32;
    static constexpr bool has_minimum = true;
    KC_INLINE void quads(const uint8_t *tile, int group, Bytes w[8]) {
        nibble_quads(tile, group, w);
        fifth_bits(tile + Tile::high * LANES + group * VECTOR, w);
    }
    KC_INLINE Words scale_pair(const uint8_t *tile, int pair) { return FormatQ4_K::scale_pair(tile, pair); }
    KC_INLINE Words minimum_pair(const uint8_t *tile, int pair) { return FormatQ4_K::minimum_pair(tile, pair); }
};

struct FormatQ6_K {
    typedef TileQ6_K Tile;
    static constexpr int max = 63, scale_columns = 16;
    static constexpr bool has_minimum = false;
    KC_INLINE void quads(const uint8_t *tile, int group, Bytes w[8]) {
        nibble_quads(tile, group, w);
        const Bytes mask = Bytes{} + 48;
#pragma GCC unroll 2
        for (int a = 0; a < 2; a++) {
            const Halves high = load<Halves>(tile + Tile::high * LANES + (group * 2 + a) * VECTOR);
            w[4 * a] |= bits<Bytes>(high << 4) & mask;
            w[4 * a + 1] |= bits<Bytes>(high << 2) & mask;
            w[4 * a + 2] |= bits<Bytes>(high) & mask;
            w[4 * a + 3] |= bits<Bytes>(high >> 2) & mask;
        }
    }
    KC_INLINE Words scale_pair(const uint8_t *tile, int pair) {
        return widen(load<NarrowSigned>(tile + Tile::scales * LANES + pair * LANES * 2));
    }
};

struct FormatQ4_0 {
    typedef TileQ4_0 Tile;
    static constexpr int max = 15, offset = 8;
    static constexpr bool is_signed = false, has_minimum = false;
    KC_INLINE void quads(const uint8_t *tile, Bytes w[8]) { nibble_quads(tile, 0, w); }
    KC_INLINE Floats scales(const uint8_t *tile) { return load_halves(tile + Tile::d * LANES); }
};

struct FormatINT4 : FormatQ4_0 {
    KC_INLINE Floats scales(const uint8_t *tile) { return load_bfloats(tile + Tile::d * LANES); }
};

struct FormatQ4_1 {
    typedef TileQ4_1 Tile;
    static constexpr int max = 15, offset = 0;
    static constexpr bool is_signed = false, has_minimum = true;
    KC_INLINE void quads(const uint8_t *tile, Bytes w[8]) { nibble_quads(tile, 0, w); }
    KC_INLINE Floats scales(const uint8_t *tile) { return load_halves(tile + Tile::d * LANES); }
    KC_INLINE Floats minimums(const uint8_t *tile) { return load_halves(tile + Tile::m * LANES); }
};

struct FormatQ5_0 {
    typedef TileQ5_0 Tile;
    static constexpr int max = 31, offset = 16;
    static constexpr bool is_signed = false, has_minimum = false;
    KC_INLINE void quads(const uint8_t *tile, Bytes w[8]) {
        nibble_quads(tile, 0, w);
        fifth_bits(tile + Tile::high * LANES, w);
    }
    KC_INLINE Floats scales(const uint8_t *tile) { return load_halves(tile + Tile::d * LANES); }
};

struct FormatQ5_1 {
    typedef TileQ5_1 Tile;
    static constexpr int max = 31, offset = 0;
    static constexpr bool is_signed = false, has_minimum = true;
    KC_INLINE void quads(const uint8_t *tile, Bytes w[8]) { FormatQ5_0::quads(tile, w); }
    KC_INLINE Floats scales(const uint8_t *tile) { return load_halves(tile + Tile::d * LANES); }
    KC_INLINE Floats minimums(const uint8_t *tile) { return load_halves(tile + Tile::m * LANES); }
};

struct FormatQ8_0 {
    typedef TileQ8_0 Tile;
    static constexpr int max = 255, offset = SIGNED_OFFSET;
    static constexpr bool is_signed = true, has_minimum = false;
    KC_INLINE void quads(const uint8_t *tile, Bytes w[8]) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) w[j] = load<Bytes>(tile + j * VECTOR);
    }
    KC_INLINE Floats scales(const uint8_t *tile) { return load_halves(tile + Tile::d * LANES); }
};
