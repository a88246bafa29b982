// Writes the keys and values of new tokens into the pages of their slots, in the kind of the pages (kv_formats.h).
//
// Keys are columns of a page, so a token is written element by element. A task is a run of STORE_RUN tokens: neighbours share
// cache lines, and two threads must not write the same ones more than at the seams.

constexpr int STORE_RUN = 32;

template <class Kind> void store_run(void *context, int task, int) {
    const StoreCall &call = *(const StoreCall *)context;
    const Pages &pages = *call.pages;
    const PageLayout layout = page_layout(pages.kind, pages.block_size, pages.width);
    const int first = task * STORE_RUN, end = first + STORE_RUN < call.tokens ? first + STORE_RUN : call.tokens;
    alignas(64) float k[MAX_WIDTH] = {}, v[MAX_WIDTH] = {};
    for (int token = first; token < end; token++) {
        const int slot = call.slots[token], at = slot % pages.block_size;
        uint8_t *page = pages.data + (int64_t)(slot / pages.block_size) * pages.block_stride;
        for (int head = 0; head < pages.kv_heads; head++, page += layout.bytes) {
            // Beyond the head's size the buffers hold zeros, unless the rotation has spread something there.
            memset(k + pages.width, 0, (size_t)(layout.width - pages.width) * 4);
            memset(v + pages.width, 0, (size_t)(layout.width - pages.width) * 4);
            memcpy(k, call.k + token * call.k_stride + (int64_t)head * pages.width, (size_t)pages.width * 4);
            memcpy(v, call.v + token * call.v_stride + (int64_t)head * pages.width, (size_t)pages.width * 4);
            if (call.key_shift)
                for (int i = 0; i < pages.width; i++) k[i] -= call.key_shift[head * pages.width + i];
            if (Kind::rotated) {
                rotate_row(k, layout.width);
                rotate_row(v, layout.width);
            }
            Kind::store_head(layout, k, v, at, page);
        }
    }
}

void store_kv(const StoreCall *call) {
    const int64_t elements = (int64_t)call->tokens * call->pages->kv_heads * call->pages->width;
    const PoolTask task = call->pages->kind == PAGES_INT8   ? store_run<BytePages>
                          : call->pages->kind == PAGES_INT4 ? store_run<NibblePages>
                                                            : store_run<HalfPages>;
    run_rows((call->tokens + STORE_RUN - 1) / STORE_RUN, elements, task, (void *)call);
}
