// Rotary embedding in place: (a, b) -> (a cos - b sin, b cos + a sin) for the pairs of each head's first `rotary` values.
// Pairs are (i, i + rotary/2), or (2i, 2i+1) when interleaved; cos and sin are rows of a table by position.

KC_INLINE void rotate_head(float *head, const float *cosines, const float *sines, int half, bool interleaved) {
    const int step = interleaved ? 2 : 1, distance = interleaved ? 1 : half;
    int i = 0;
    if (!interleaved)
        for (; i + LANES <= half; i += LANES) {
            const Floats a = load<Floats>(head + i), b = load<Floats>(head + half + i);
            const Floats c = load<Floats>(cosines + i), s = load<Floats>(sines + i);
            store(head + i, a * c - b * s);
            store(head + half + i, b * c + a * s);
        }
    for (; i < half; i++) {
        float *pair = head + i * step;
        const float a = pair[0], b = pair[distance];
        pair[0] = a * cosines[i] - b * sines[i];
        pair[distance] = b * cosines[i] + a * sines[i];
    }
}

void rope_token(void *context, int token, int) {
    const RopeCall &call = *(const RopeCall *)context;
    const int half = call.rotary / 2;
    const float *cosines = call.table + (int64_t)call.positions[token] * call.rotary, *sines = cosines + half;
    for (int h = 0; h < call.heads; h++)
        rotate_head(call.q + token * call.q_stride + (int64_t)h * call.width, cosines, sines, half, call.interleaved);
    for (int h = 0; h < call.kv_heads; h++)
        rotate_head(call.k + token * call.k_stride + (int64_t)h * call.width, cosines, sines, half, call.interleaved);
}

void rope(const RopeCall *call) {
    const int64_t elements = (int64_t)call->tokens * (call->heads + call->kv_heads) * call->width;
    run_rows(call->tokens, elements, rope_token, (void *)call);
}
