// A persistent pool of threads. See pool.cpp.
#pragma once
#include <stddef.h>

typedef void (*PoolTask)(void *context, int task, int worker);

// Runs task 0..tasks-1, each once, on all threads and the caller; returns when all are done. At most 2^22-1 tasks.
void pool_run(int tasks, PoolTask task, void *context);
int pool_threads();
void pool_set_threads(int count);
// Memory of at least `bytes`, 64-byte aligned, that lives until the next call from the same thread.
void *scratch(size_t bytes);
