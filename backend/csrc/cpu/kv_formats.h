// The kinds of pages: how a head is written into a page, and how a tile of one becomes float32 (layout.h has the bytes). `direct` kinds
// also offer K (a row per dimension, a column per token) and V (a row per token) as sources of attention_tile.h.
//
// int8 and int4 hold heads multiplied by a Hadamard matrix (divided by the root of its size, so that it is its own inverse):
// outliers in a few dimensions, which keys of many models have, are spread over all of them, and one scale serves them.
// q H . k H = q . k, so queries are rotated too, and what comes out of the values is rotated back.
//   int8: x ~ s * q, s = max|x| / 127 per token and head; s multiplies the finished score, or the probability.
//   int4: x ~ m + s * q, q in 0..15, with s = (max - min) / 15 and m = min per token, head and 32 dimensions.

constexpr int NIBBLE_GROUP = 32;

// Sources know how many bytes ahead the same place of the next tile is.
KC_INLINE void prefetch(const void *from, int64_t next) { __builtin_prefetch((const char *)from + next); }

// In place, the transform over runs of the largest power of two that divides the width.
void rotate_row(float *x, int width) {
    const int size = width & -width;
    for (int stride = 1; stride < size; stride *= 2)
        for (int first = 0; first < width; first += 2 * stride) {
            float *low = x + first, *high = low + stride;
            int i = 0;
            for (; i + LANES <= stride; i += LANES) {
                const Floats a = load<Floats>(low + i), b = load<Floats>(high + i);
                store(low + i, a + b);
                store(high + i, a - b);
            }
            for (; i < stride; i++) {
                const float a = low[i], b = high[i];
                low[i] = a + b;
                high[i] = a - b;
            }
        }
    const float factor = 1.0f / __builtin_sqrtf((float)size);
    for (int i = 0; i < width; i += LANES) store(x + i, load<Floats>(x + i) * factor);
}

// Nearest whole number of x * factor, which is below 2^22.
KC_INLINE int32_t round_scaled(float x, float factor) {
    const float magic = 12582912.0f, product = x * factor;
    return (int32_t)(float_to_bits(product + magic) - float_to_bits(magic));
}

struct HalfPages {
    static constexpr bool direct = true, rotated = false, scaled = false;

    // k, v: `layout.width` floats, already rotated where `rotated` says so.
    static void store_head(const PageLayout &layout, const float *k, const float *v, int at, uint8_t *page) {
        uint16_t *column = (uint16_t *)page + at, *row = (uint16_t *)(page + layout.values) + (int64_t)at * layout.width;
        uint16_t narrow[LANES];
        for (int i = 0; i < layout.width; i += LANES) {
            store_halves(narrow, load<Floats>(k + i));
            for (int j = 0; j < LANES; j++) column[(int64_t)(i + j) * layout.tokens] = narrow[j];
            store_halves(row + i, load<Floats>(v + i));
        }
    }

    struct Keys {
        static constexpr int STEPS = 1;
        const uint16_t *from;
        int tokens;
        int64_t next;
        KC_INLINE Floats at(const Keys &b, int k, int, int n) { return load_halves(b.from + k * b.tokens + n); }
        KC_INLINE void ask(const Keys &b, int k, int n) { prefetch(b.from + k * b.tokens + n, b.next); }
    };
    struct Values {
        static constexpr int STEPS = 1;
        const uint16_t *from;
        int width;
        int64_t next;
        KC_INLINE Floats at(const Values &b, int k, int, int n) { return load_halves(b.from + k * b.width + n); }
        KC_INLINE void ask(const Values &b, int k, int n) { prefetch(b.from + k * b.width + n, b.next); }
    };
    static Keys keys(const PageLayout &layout, const uint8_t *page, int at, int64_t next) {
        return {(const uint16_t *)page + at, layout.tokens, next};
    }
    static Values values(const PageLayout &layout, const uint8_t *page, int at, int64_t next) {
        return {(const uint16_t *)(page + layout.values) + (int64_t)at * layout.width, layout.width, next};
    }

    // Columns at..at+columns of K, whole vectors of them, to [width][KEY_TILE].
    static void widen_keys(const PageLayout &layout, const uint8_t *page, int at, int columns, int64_t next, float *to) {
        widen_rows(keys(layout, page, at, next), layout.width, columns, to, KEY_TILE);
    }

    // Rows at..at+keys of V to [keys][width].
    static void widen_values(const PageLayout &layout, const uint8_t *page, int at, int keys, int64_t next, float *to) {
        widen_rows(values(layout, page, at, next), keys, layout.width, to, layout.width);
    }
};

struct BytePages {
    static constexpr bool direct = true, rotated = true, scaled = true;

    static float largest(const float *x, int width) {
        Floats peak = {};
        for (int i = 0; i < width; i += LANES) peak = maximum(peak, absolute(load<Floats>(x + i)));
        return max_lanes(peak);
    }

    static const float *key_scales(const PageLayout &layout, const uint8_t *page) {
        return (const float *)(page + (int64_t)layout.width * layout.tokens);
    }
    static const float *value_scales(const PageLayout &layout, const uint8_t *page) {
        return key_scales(layout, page + layout.values);
    }

    static void store_head(const PageLayout &layout, const float *k, const float *v, int at, uint8_t *page) {
        const float key_peak = largest(k, layout.width), value_peak = largest(v, layout.width);
        ((float *)key_scales(layout, page))[at] = key_peak / 127.0f;
        ((float *)value_scales(layout, page))[at] = value_peak / 127.0f;
        const float key_factor = key_peak > 0 ? 127.0f / key_peak : 0, value_factor = value_peak > 0 ? 127.0f / value_peak : 0;
        uint8_t *row = page + layout.values + (int64_t)at * layout.width;
        for (int i = 0; i < layout.width; i++) {
            page[((int64_t)(i / 4) * layout.tokens + at) * 4 + i % 4] = (uint8_t)round_scaled(k[i], key_factor);
            row[i] = (uint8_t)round_scaled(v[i], value_factor);
        }
    }

    struct Keys {
        static constexpr int STEPS = 4;
        const uint8_t *from;
        int tokens;
        int64_t next;
        KC_INLINE void ask(const Keys &b, int k, int n) { prefetch(b.from + (k / 4 * b.tokens + n) * 4, b.next); }
        KC_INLINE Floats at(const Keys &b, int k, int step, int n) {
            return to_floats(load<Ints>(b.from + (k / 4 * b.tokens + n) * 4) << (24 - 8 * step) >> 24);
        }
    };
    struct Values {
        static constexpr int STEPS = 1;
        const uint8_t *from;
        int width;
        int64_t next;
        KC_INLINE Floats at(const Values &b, int k, int, int n) { return to_floats(widen_signed(b.from + k * b.width + n)); }
        KC_INLINE void ask(const Values &b, int k, int n) { prefetch(b.from + k * b.width + n, b.next); }
    };
    static Keys keys(const PageLayout &layout, const uint8_t *page, int at, int64_t next) {
        return {page + at * 4, layout.tokens, next};
    }
    static Values values(const PageLayout &layout, const uint8_t *page, int at, int64_t next) {
        return {page + layout.values + (int64_t)at * layout.width, layout.width, next};
    }

    static void widen_keys(const PageLayout &layout, const uint8_t *page, int at, int columns, int64_t next, float *to) {
        widen_rows(keys(layout, page, at, next), layout.width, columns, to, KEY_TILE);
    }

    static void widen_values(const PageLayout &layout, const uint8_t *page, int at, int keys, int64_t next, float *to) {
        widen_rows(values(layout, page, at, next), keys, layout.width, to, layout.width);
    }
};

struct NibblePages {
    static constexpr bool direct = false, rotated = true, scaled = false;

    // The 32 numbers of a group in 0..15; returns scale and minimum as float16.
    static void quantize(const float *x, uint16_t parameters[2], uint8_t q[NIBBLE_GROUP]) {
        float low = x[0], high = x[0];
        for (int i = 1; i < NIBBLE_GROUP; i++) {
            low = x[i] < low ? x[i] : low;
            high = x[i] > high ? x[i] : high;
        }
        parameters[0] = float_to_half((high - low) / 15.0f);
        parameters[1] = float_to_half(low);
        const float scale = half_to_float(parameters[0]), minimum = half_to_float(parameters[1]);
        const float factor = scale > 0 ? 1.0f / scale : 0;
        for (int i = 0; i < NIBBLE_GROUP; i++) {
            const int32_t level = round_scaled(x[i] - minimum, factor);
            q[i] = (uint8_t)(level < 0 ? 0 : level > 15 ? 15 : level);
        }
    }

    static const uint16_t *parameters(const PageLayout &layout, const uint8_t *half) {
        return (const uint16_t *)(half + (int64_t)layout.width / 2 * layout.tokens);
    }

    static void store_head(const PageLayout &layout, const float *k, const float *v, int at, uint8_t *page) {
        uint16_t *key_parameters = (uint16_t *)parameters(layout, page) + at;
        uint16_t *value_parameters = (uint16_t *)parameters(layout, page + layout.values) + (int64_t)at * (layout.width / 16);
        uint8_t *row = page + layout.values + (int64_t)at * (layout.width / 2);
        for (int group = 0; group < layout.width / NIBBLE_GROUP; group++, row += 16) {
            uint16_t found[2];
            uint8_t q[NIBBLE_GROUP];
            quantize(k + group * NIBBLE_GROUP, found, q);
            for (int part = 0; part < 2; part++) key_parameters[(2 * group + part) * layout.tokens] = found[part];
            for (int j = 0; j < 4; j++)
                for (int b = 0; b < 4; b++)
                    page[((int64_t)(group * 4 + j) * layout.tokens + at) * 4 + b] = (uint8_t)(q[8 * j + b] | q[8 * j + 4 + b] << 4);
            quantize(v + group * NIBBLE_GROUP, value_parameters + 2 * group, q);
            for (int b = 0; b < 16; b++) row[b] = (uint8_t)(q[b] | q[16 + b] << 4);
        }
    }

    static void widen_keys(const PageLayout &layout, const uint8_t *page, int at, int columns, int64_t, float *to) {
        const uint16_t *scales = parameters(layout, page) + at;
        for (int group = 0; group < layout.width / NIBBLE_GROUP; group++, scales += 2 * layout.tokens, to += NIBBLE_GROUP * KEY_TILE)
            for (int c = 0; c < columns; c += LANES) {
                const Floats scale = load_halves(scales + c), minimum = load_halves(scales + layout.tokens + c);
                for (int j = 0; j < 4; j++) {
                    const Ints eight = load<Ints>(page + ((int64_t)(group * 4 + j) * layout.tokens + at + c) * 4);
#pragma GCC unroll 8
                    for (int b = 0; b < 8; b++) {
                        const Ints level = eight >> (8 * (b % 4) + 4 * (b / 4)) & 15;
                        store(to + (8 * j + b) * KEY_TILE + c, to_floats(level) * scale + minimum);
                    }
                }
            }
    }

    static void widen_values(const PageLayout &layout, const uint8_t *page, int at, int keys, int64_t, float *to) {
        const uint16_t *pair = parameters(layout, page + layout.values) + (int64_t)at * (layout.width / 16);
        const uint8_t *from = page + layout.values + (int64_t)at * (layout.width / 2);
        for (int group = 0; group < keys * (layout.width / NIBBLE_GROUP); group++, pair += 2, from += 16, to += NIBBLE_GROUP) {
            const Floats scale = splat(half_to_float(pair[0])), minimum = splat(half_to_float(pair[1]));
            for (int i = 0; i < 16; i += LANES) {
                const Ints two = widen_signed(from + i);
                store(to + i, to_floats(two & 15) * scale + minimum);
                store(to + 16 + i, to_floats(two >> 4 & 15) * scale + minimum);
            }
        }
    }
};
