// Writes the keys and values of new tokens into the pages of their slots (layout.h).
//
// Keys are columns of a page, so a token is written element by element. A task is a run of STORE_RUN tokens: neighbours share
// cache lines, and two threads must not write the same ones more than at the seams.

constexpr int STORE_RUN = 32;

void store_head_halves(const PageLayout &layout, const float *k, const float *v, int width, int at, uint8_t *page) {
    uint16_t *column = (uint16_t *)page + at, *row = (uint16_t *)(page + layout.values) + (int64_t)at * layout.width;
    uint16_t narrow[LANES];
    for (int i = 0; i < layout.width; i += LANES) {
        Floats keys = {}, values = {};
        memcpy(&keys, k + i, (size_t)(width - i < LANES ? (width > i ? width - i : 0) : LANES) * 4);
        memcpy(&values, v + i, (size_t)(width - i < LANES ? (width > i ? width - i : 0) : LANES) * 4);
        store_halves(narrow, keys);
        for (int j = 0; j < LANES; j++) column[(int64_t)(i + j) * layout.tokens] = narrow[j];
        store_halves(row + i, values);
    }
}

void store_run(void *context, int task, int) {
    const StoreCall &call = *(const StoreCall *)context;
    const Pages &pages = *call.pages;
    const PageLayout layout = page_layout(pages.kind, pages.block_size, pages.width);
    const int first = task * STORE_RUN, end = first + STORE_RUN < call.tokens ? first + STORE_RUN : call.tokens;
    for (int token = first; token < end; token++) {
        const int slot = call.slots[token], at = slot % pages.block_size;
        uint8_t *page = pages.data + (int64_t)(slot / pages.block_size) * pages.block_stride;
        for (int head = 0; head < pages.kv_heads; head++, page += layout.bytes) {
            const float *k = call.k + token * call.k_stride + (int64_t)head * pages.width;
            const float *v = call.v + token * call.v_stride + (int64_t)head * pages.width;
            store_head_halves(layout, k, v, pages.width, at, page);
        }
    }
}

void store_kv(const StoreCall *call) {
    const int64_t elements = (int64_t)call->tokens * call->pages->kv_heads * call->pages->width;
    run_rows((call->tokens + STORE_RUN - 1) / STORE_RUN, elements, store_run, (void *)call);
}
