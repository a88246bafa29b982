// Writes the keys and values of new tokens into their slots of the float16 cache.

struct StoreJob {
    const float *k;
    int64_t k_stride;
    const float *v;
    int64_t v_stride;
    int row;
    uint16_t *k_cache, *v_cache;
    const int32_t *slots;
};

KC_INLINE void narrow_floats(const float *from, int count, uint16_t *to) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) store_halves(to + i, load<Floats>(from + i));
    for (; i < count; i++) to[i] = float_to_half(from[i]);
}

void store_token(void *context, int token, int) {
    const StoreJob &job = *(const StoreJob *)context;
    const int64_t offset = (int64_t)job.slots[token] * job.row;
    narrow_floats(job.k + token * job.k_stride, job.row, job.k_cache + offset);
    narrow_floats(job.v + token * job.v_stride, job.row, job.v_cache + offset);
}

void store_kv(const float *k, int64_t k_stride, const float *v, int64_t v_stride, int tokens, int row, uint16_t *k_cache,
              uint16_t *v_cache, const int32_t *slots) {
    StoreJob job{k, k_stride, v, v_stride, row, k_cache, v_cache, slots};
    run_rows(tokens, (int64_t)tokens * row, store_token, &job);
}
