// The tile instructions in plain C++, for tests on machines without them: the rules of Intel's manual that the kernels lean on.
//
//   - a thread that has not loaded a configuration must not touch tiles, and one that has released them neither: that ends the process,
//     as the illegal instruction would. Loading checks the palette, the shapes and the reserved bytes.
//   - tdpbf16ps: for each row of sums two chains from zero, over the first and the second columns of the pairs, fused multiply-adds
//     rounded to nearest even (a product of two bf16 is exact in f32), then one addition of the chains, then one to the sum.
//     Denormals count as zero, in sources, sums and results; the rounding mode of the thread does not matter.
//   - loads and stores take rows `stride` bytes apart.
//   - vcvtne2ps2bf16: nearest even, denormals to zero, NaN stays NaN.
// `kc_emulated_configured` counts the threads that hold a configuration.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
__attribute__((visibility("default"))) int kc_emulated_configured = 0;
}

namespace emulated {

struct State {
    uint8_t rows[8][1024];
    uint8_t config[64];
    bool configured;
};

inline State &state() {
    static thread_local State of_thread;
    return of_thread;
}

inline void require(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "emulated AMX: %s\n", what);
    abort();
}

inline void load_config(const void *from) {
    State &s = state();
    memcpy(s.config, from, 64);
    require(((uintptr_t)from & 63) == 0, "the configuration is not aligned");
    require(s.config[0] == 1, "the palette is not 1");
    for (int i = 2; i < 16; i++) require(s.config[i] == 0, "a reserved byte is set");
    for (int i = 0; i < 16; i++) {
        uint16_t bytes;
        memcpy(&bytes, s.config + 16 + 2 * i, 2);
        require(bytes <= (i < 8 ? 64 : 0) && s.config[48 + i] <= (i < 8 ? 16 : 0), "a tile is too large");
        require((bytes == 0) == (s.config[48 + i] == 0), "a tile has rows or bytes alone");
    }
    memset(s.rows, 0, sizeof s.rows);
    if (!s.configured) __atomic_fetch_add(&kc_emulated_configured, 1, __ATOMIC_SEQ_CST);
    s.configured = true;
}

inline void release() {
    State &s = state();
    if (s.configured) __atomic_fetch_sub(&kc_emulated_configured, 1, __ATOMIC_SEQ_CST);
    memset(&s, 0, sizeof s);
}

inline int rows_of(int tile) {
    require(state().configured, "a tile is used without a configuration");
    return state().config[48 + tile];
}

inline int bytes_of(int tile) {
    uint16_t bytes;
    memcpy(&bytes, state().config + 16 + 2 * tile, 2);
    return bytes;
}

inline void zero(int tile) {
    rows_of(tile);
    memset(state().rows[tile], 0, 1024);
}

inline void load(int tile, const void *from, int64_t stride) {
    zero(tile);
    const int bytes = bytes_of(tile);
    for (int r = 0; r < rows_of(tile); r++) memcpy(state().rows[tile] + 64 * r, (const uint8_t *)from + r * stride, (size_t)bytes);
}

inline void store(int tile, void *to, int64_t stride) {
    for (int r = 0; r < rows_of(tile); r++) memcpy((uint8_t *)to + r * stride, state().rows[tile] + 64 * r, (size_t)bytes_of(tile));
}

inline float flushed(float value) { return fabsf(value) < 1.17549435e-38f ? copysignf(0.0f, value) : value; }

inline float widened(const uint8_t *from) {
    uint32_t bits = (uint32_t)(from[0] | from[1] << 8) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return flushed(value);
}

inline void multiply(int sums, int a, int b) {
    const bool fit = rows_of(a) == rows_of(sums) && bytes_of(b) == bytes_of(sums) && bytes_of(a) == 4 * rows_of(b);
    require(fit, "the shapes of a product differ");
    float first[16][16], second[16][16];
    for (int k = 0; k < rows_of(b); k++)
        for (int n = 0; n < 16; n++) {
            first[k][n] = widened(state().rows[b] + 64 * k + 4 * n);
            second[k][n] = widened(state().rows[b] + 64 * k + 4 * n + 2);
        }
    for (int m = 0; m < rows_of(sums); m++) {
        float chains[2][16] = {}, sum[16];
        for (int k = 0; k < rows_of(b); k++) {
            const uint8_t *pair = state().rows[a] + 64 * m + 4 * k;
            const float x = widened(pair), y = widened(pair + 2);
            for (int n = 0; n < 16; n++) {
                chains[0][n] = flushed(fmaf(x, first[k][n], chains[0][n]));
                chains[1][n] = flushed(fmaf(y, second[k][n], chains[1][n]));
            }
        }
        memcpy(sum, state().rows[sums] + 64 * m, 64);
        for (int n = 0; n < 16; n++) sum[n] = flushed(flushed(sum[n]) + flushed(chains[0][n] + chains[1][n]));
        memcpy(state().rows[sums] + 64 * m, sum, 64);
    }
}

inline uint16_t rounded(float value) {
    uint32_t bits;
    value = flushed(value);
    memcpy(&bits, &value, 4);
    if (value != value) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace emulated

#define _tile_loadconfig(from) emulated::load_config(from)
#define _tile_release() emulated::release()
#define _tile_zero(tile) emulated::zero(tile)
#define _tile_loadd(tile, from, stride) emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::store(tile, to, stride)
#define _tile_dpbf16ps(sums, a, b) emulated::multiply(sums, a, b)

// vcvtne2ps2bf16, the lower half first.
template <class Floats> inline Floats emulated_round_pairs(Floats low, Floats high) {
    uint16_t halves[32];
    for (int i = 0; i < 16; i++) {
        halves[i] = emulated::rounded(low[i]);
        halves[16 + i] = emulated::rounded(high[i]);
    }
    Floats out;
    memcpy(&out, halves, 64);
    return out;
}

// vpermb under a mask: bytes of `from` where the mask has a bit, of `base` elsewhere.
template <class Bytes> inline Bytes emulated_permute_bytes(Bytes base, uint64_t mask, Bytes order, Bytes from) {
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1) base[i] = from[order[i] & 63];
    return base;
}

// vpermps
template <class Floats, class Ints> inline Floats emulated_permute(Floats from, Ints order) {
    Floats out;
    for (int i = 0; i < 16; i++) out[i] = from[order[i] & 15];
    return out;
}

// vpermt2d
template <class Unsigned, class Ints> inline Unsigned emulated_permute_two(Unsigned a, Ints order, Unsigned b) {
    Unsigned out;
    for (int i = 0; i < 16; i++) out[i] = order[i] & 16 ? b[order[i] & 15] : a[order[i] & 15];
    return out;
}

// One product of full tiles, for the test of this file.
extern "C" __attribute__((visibility("default")))
void kc_emulated_product(const void *config, void *sums, const void *a, const void *b) {
    _tile_loadconfig(config);
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, a, 64);
    _tile_loadd(2, b, 64);
    _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, sums, 64);
    _tile_release();
}
