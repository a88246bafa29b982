// Vector types and the few primitives that differ between instruction sets. Included inside `namespace KC_ISA`, after the
// system headers: everything here must stay out of other units' reach, or the linker could hand AVX-512 code to an old CPU.
//
// Vectors are the compiler's own (arithmetic, shifts, comparisons, conversions work on any target); intrinsics serve only
// where a single instruction must be hit.

#if defined(KC_ISA_AVX512VNNI) || defined(KC_ISA_AMX) || defined(KC_EMULATE_AMX)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int VECTOR = LANES * 4;  // bytes

#if (defined(KC_ISA_AVX512VNNI) && !defined(KC_EMULATE_AVX512)) || (defined(KC_ISA_AMX) && !defined(KC_EMULATE_AMX))
#define KC_NATIVE_AVX512
#endif

typedef uint8_t Bytes __attribute__((vector_size(VECTOR)));
typedef int8_t SignedBytes __attribute__((vector_size(VECTOR)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR)));
typedef int16_t Words __attribute__((vector_size(VECTOR)));
typedef int32_t Ints __attribute__((vector_size(VECTOR)));
typedef uint32_t Unsigned __attribute__((vector_size(VECTOR)));
typedef float Floats __attribute__((vector_size(VECTOR)));
typedef uint8_t NarrowBytes __attribute__((vector_size(VECTOR / 2)));
typedef int8_t NarrowSigned __attribute__((vector_size(VECTOR / 2)));
typedef uint16_t NarrowHalves __attribute__((vector_size(VECTOR / 2)));

#define KC_INLINE static inline __attribute__((always_inline))

template <class To, class From> KC_INLINE To bits(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "bits() keeps the size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

template <class Vector> KC_INLINE Vector load(const void *from) {
    Vector vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class Vector> KC_INLINE void store(void *to, const Vector &vector) { __builtin_memcpy(to, &vector, sizeof vector); }

KC_INLINE Floats splat(float value) { return value - Floats{}; }
KC_INLINE Ints splat_int(int32_t value) { return value - Ints{}; }

KC_INLINE Bytes broadcast_quad(const void *from) {
    int32_t quad;
    __builtin_memcpy(&quad, from, 4);
    return bits<Bytes>(splat_int(quad));
}

KC_INLINE Words broadcast_pair(const void *from) { return bits<Words>(broadcast_quad(from)); }
KC_INLINE Floats broadcast_float(const void *from) {
    float value;
    __builtin_memcpy(&value, from, 4);
    return splat(value);
}
KC_INLINE Floats to_floats(Ints ints) { return __builtin_convertvector(ints, Floats); }
KC_INLINE Floats absolute(Floats v) { return bits<Floats>(bits<Unsigned>(v) & 0x7fffffffu); }
KC_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
#if defined(KC_ISA_AVX2)
KC_INLINE Words widen(NarrowBytes v) { return bits<Words>(_mm256_cvtepu8_epi16(bits<__m128i>(v))); }
KC_INLINE Words widen(NarrowSigned v) { return bits<Words>(_mm256_cvtepi8_epi16(bits<__m128i>(v))); }
#else
KC_INLINE Words widen(NarrowBytes v) { return __builtin_convertvector(v, Words); }
KC_INLINE Words widen(NarrowSigned v) { return __builtin_convertvector(v, Words); }
#endif

KC_INLINE float sum_lanes(Floats v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

KC_INLINE float max_lanes(Floats v) {
    float largest = v[0];
    for (int i = 1; i < LANES; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
}

// Words (a0, b0, a1, b1, ...): the first or the second of each pair, twice.
#if defined(KC_ISA_AVX2)
KC_INLINE Words first_twice(Words v) {
    const __m256i order = _mm256_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
    return bits<Words>(_mm256_shuffle_epi8(bits<__m256i>(v), order));
}
KC_INLINE Words second_twice(Words v) {
    const __m256i order = _mm256_setr_epi8(2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15, 2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15);
    return bits<Words>(_mm256_shuffle_epi8(bits<__m256i>(v), order));
}
#else
KC_INLINE Words first_twice(Words v) {
    const Unsigned u = bits<Unsigned>(v);
    return bits<Words>((u & 0xffffu) | u << 16);
}
KC_INLINE Words second_twice(Words v) {
    const Unsigned u = bits<Unsigned>(v);
    return bits<Words>((u & 0xffff0000u) | u >> 16);
}
#endif

// Per 32-bit lane: a0*b0 + a1*b1 of signed words.
KC_INLINE Ints multiply_pairs(Words a, Words b) {
#if defined(KC_ISA_AVX2)
    return bits<Ints>(_mm256_madd_epi16(bits<__m256i>(a), bits<__m256i>(b)));
#elif defined(KC_ISA_AVX512VNNI)
    return bits<Ints>(_mm512_madd_epi16(bits<__m512i>(a), bits<__m512i>(b)));
#else
    const Ints x = bits<Ints>(a), y = bits<Ints>(b);
    return (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

// Dot products of unsigned weights and signed activations, accumulated over quads. AVX2 and portable code accumulate in
// 16 bits: `safe_quads` says how many quads of weights 0..max fit (|x| <= 127); `fold` widens, multiplied by a word scale.
// `start_dot` begins with an offset given as the words (of columns 0 and 1 of all quads, of columns 2 and 3). 16-bit sums may
// pass the range on the way as long as the end lies inside: additions wrap, and a single vpmaddubsw stays below 2^15.
#if defined(KC_ISA_AVX512VNNI)
typedef Ints Dot;
KC_INLINE constexpr int safe_quads(int) { return 8; }
KC_INLINE Dot dot(Dot sum, Bytes w, Bytes x) {
    return bits<Ints>(_mm512_dpbusd_epi32(bits<__m512i>(sum), bits<__m512i>(w), bits<__m512i>(x)));
}
KC_INLINE Dot start_dot(const void *pair) { return multiply_pairs(broadcast_pair(pair), Words{} + 1); }
KC_INLINE Ints fold(Dot sum, Words scale_twice) { return sum * (bits<Ints>(scale_twice) >> 16); }
KC_INLINE Ints fold(Dot sum) { return sum; }
#else
typedef Words Dot;
KC_INLINE constexpr int safe_quads(int max) { return 32767 / (2 * 127 * max) >= 8 ? 8 : 32767 / (2 * 127 * max) >= 4 ? 4 : 2; }
KC_INLINE Words multiply_quads(Bytes w, Bytes x) {
#if defined(KC_ISA_AVX2)
    return bits<Words>(_mm256_maddubs_epi16(bits<__m256i>(w), bits<__m256i>(x)));
#else
    const Words wide = bits<Words>(x), weight = bits<Words>(w);
    return (weight & 0xff) * (wide << 8 >> 8) + bits<Words>(bits<Halves>(w) >> 8) * (wide >> 8);
#endif
}
KC_INLINE Dot dot(Dot sum, Bytes w, Bytes x) {
    sum += multiply_quads(w, x);
#if defined(KC_ISA_AVX2)
    // GCC would otherwise regroup the additions, compute all products first and spill them: a third slower.
    __asm__("" : "+x"(sum));
#endif
    return sum;
}
KC_INLINE Dot start_dot(const void *pair) { return broadcast_pair(pair); }
KC_INLINE Ints fold(Dot sum, Words scale_twice) { return multiply_pairs(sum, scale_twice); }
KC_INLINE Ints fold(Dot sum) { return multiply_pairs(sum, Words{} + 1); }
#endif

// Signed weights: VNNI takes w + 128 and the caller subtracts SIGNED_OFFSET * sum(x); the others are exact as they are.
#if defined(KC_ISA_AVX512VNNI)
constexpr int SIGNED_OFFSET = 128;
KC_INLINE Ints dot_signed(Ints sum, Bytes w, Bytes x) { return dot(sum, w ^ 0x80, x); }
#elif defined(KC_ISA_AVX2)
constexpr int SIGNED_OFFSET = 0;
KC_INLINE Ints dot_signed(Ints sum, Bytes w, Bytes x) {
    const __m256i weight = bits<__m256i>(w), turned = _mm256_sign_epi8(bits<__m256i>(x), weight);
    return sum + fold(bits<Words>(_mm256_maddubs_epi16(_mm256_abs_epi8(weight), turned)));
}
#else
constexpr int SIGNED_OFFSET = 0;
KC_INLINE Ints dot_signed(Ints sum, Bytes w, Bytes x) {
    const Words a = bits<Words>(w), b = bits<Words>(x);
    return sum + fold((a << 8 >> 8) * (b << 8 >> 8) + (a >> 8) * (b >> 8));
}
#endif

// LANES bytes as words of 32 bits.
KC_INLINE Ints widen_signed(const void *from) {
#if defined(KC_ISA_AVX2)
    return bits<Ints>(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#elif defined(KC_NATIVE_AVX512)
    return bits<Ints>(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#else
    Ints out;
    for (int i = 0; i < LANES; i++) out[i] = ((const int8_t *)from)[i];
    return out;
#endif
}

KC_INLINE Floats load_halves(const void *from) {
#if defined(KC_ISA_AVX2)
    return bits<Floats>(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)));
#elif defined(KC_NATIVE_AVX512)
    return bits<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)));
#else
    const uint16_t *halves = (const uint16_t *)from;
    Floats out;
    for (int i = 0; i < LANES; i++) out[i] = half_to_float(halves[i]);
    return out;
#endif
}

KC_INLINE Floats load_bfloats(const void *from) {
    return bits<Floats>(__builtin_convertvector(load<NarrowHalves>(from), Unsigned) << 16);
}

KC_INLINE void store_halves(void *to, Floats v) {
#if defined(KC_ISA_AVX2)
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(KC_NATIVE_AVX512)
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#else
    uint16_t *halves = (uint16_t *)to;
    for (int i = 0; i < LANES; i++) halves[i] = float_to_half(v[i]);
#endif
}

// e^x within 2 units in the last place for x in [-87, 88]; below -87 it is 0.
KC_INLINE Floats exponential(Floats x) {
    const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    const Floats bounded = x > splat(88.0f) ? splat(88.0f) : x;
    const Floats shifted = bounded * 1.44269504088896341f + magic;
    const Floats whole = shifted - magic;
    const Floats rest = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const Ints exponent = (bits<Ints>(shifted) - bits<Ints>(magic) + 127) << 23;
    const Floats value = sum * bits<Floats>(exponent);
    return x < splat(-87.0f) ? Floats{} : value;
}

// 2^x for x <= 0 within 3e-7 of the value; below -125 it is 2^-125, so that nothing becomes denormal.
KC_INLINE Floats power_of_two(Floats x) {
    const Floats magic = splat(12582912.0f);  // as in `exponential`
    const Floats bounded = maximum(x, splat(-125.0f));
    const Floats shifted = bounded + magic;
    const Floats rest = bounded - (shifted - magic);
    Floats sum = rest * 1.327647940e-3f + 9.675541283e-3f;
    sum = sum * rest + 5.550713246e-2f;
    sum = sum * rest + 2.402211972e-1f;
    sum = sum * rest + 6.931469671e-1f;
    sum = sum * rest + 1.000000072f;
    return bits<Floats>(bits<Ints>(sum) + (bits<Ints>(shifted) << 23));
}
