// Thread pool: work is taken in small tasks from one atomic word, so a thread that the system has put aside costs only
// the task it holds, and a thread that has not woken yet costs nothing: the caller never waits for a thread, only for
// tasks that were begun. Idle threads spin for SPIN_NS (the gap between two operations of a decode step) and then sleep
// on a futex.
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace {

constexpr int64_t SPIN_NS = 50000;
constexpr int MAX_THREADS = 512;
constexpr uint64_t FIELD = (1u << 22) - 1;

// generation << 44 | task count << 22 | next task: one word, so that a task is taken together with proof of its job.
alignas(64) std::atomic<uint64_t> state{0};
alignas(64) std::atomic<uint32_t> finished{0};
std::atomic<uint32_t> caller_sleeps{0};
alignas(64) std::atomic<uint32_t> wake{0};
std::atomic<int> sleepers{0};
PoolTask job_task;
void *job_context;
pthread_mutex_t one_job = PTHREAD_MUTEX_INITIALIZER;
int thread_count = 0;
int started = 1;  // threads that exist, the caller included
std::atomic<int> wanted{1};

inline uint32_t next_of(uint64_t word) { return word & FIELD; }
inline uint32_t count_of(uint64_t word) { return word >> 22 & FIELD; }

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

int64_t now_ns() {
    timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000ll + at.tv_nsec;
}

void futex_wait(std::atomic<uint32_t> &word, uint32_t seen) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t *>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
    if (word.load() == seen) usleep(100);
#endif
}

void futex_wake(std::atomic<uint32_t> &word) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t *>(&word), FUTEX_WAKE_PRIVATE, MAX_THREADS, nullptr, nullptr, 0);
#else
    (void)word;
#endif
}

// Takes and runs one task; false when none is left.
bool run_one(int worker) {
    uint64_t word = state.load(std::memory_order_acquire);
    if (next_of(word) >= count_of(word)) return false;
    word = state.fetch_add(1, std::memory_order_acq_rel);
    if (next_of(word) >= count_of(word)) return false;
    // The job cannot end while this task is unfinished, so its description stands still here.
    job_task(job_context, (int)next_of(word), worker);
    const uint32_t count = count_of(word);
    if (finished.fetch_add(1) + 1 == count && caller_sleeps.load()) futex_wake(finished);
    return true;
}

void *work(void *argument) {
    const int worker = (int)(intptr_t)argument;
    int64_t idle_since = now_ns();
    for (;;) {
        if (worker < wanted.load(std::memory_order_relaxed) && run_one(worker)) {
            while (run_one(worker)) {}
            idle_since = now_ns();
            continue;
        }
        for (int i = 0; i < 32; i++) pause_briefly();
        if (now_ns() - idle_since < SPIN_NS) continue;
        const uint32_t seen = wake.load();
        sleepers.fetch_add(1);
        const uint64_t word = state.load();
        if (worker >= wanted.load() || next_of(word) >= count_of(word)) futex_wait(wake, seen);
        sleepers.fetch_sub(1);
        idle_since = now_ns();
    }
    return nullptr;
}

int read_number(const char *format, int cpu) {
    char path[128];
    snprintf(path, sizeof path, format, cpu);
    FILE *file = fopen(path, "r");
    int value = -1;
    if (file) {
        if (fscanf(file, "%d", &value) != 1) value = -1;
        fclose(file);
    }
    return value;
}

// CPU time that the control group grants, in whole CPUs rounded up; 0: no limit.
int cpu_quota() {
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!file) return 0;
    long quota = 0, period = 0;
    const int fields = fscanf(file, "%ld %ld", &quota, &period);
    fclose(file);
    return fields == 2 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

// Physical cores among the CPUs that this process may use, within its quota.
int physical_cores() {
    int cores = 0;
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        int64_t seen[CPU_SETSIZE];
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            const int64_t core = read_number("/sys/devices/system/cpu/cpu%d/topology/core_id", cpu);
            const int64_t package = read_number("/sys/devices/system/cpu/cpu%d/topology/physical_package_id", cpu);
            const int64_t id = core < 0 ? -1 - cpu : package << 32 | core;
            bool known = false;
            for (int i = 0; i < cores; i++) known |= seen[i] == id;
            if (!known) seen[cores++] = id;
        }
    }
#endif
    if (cores == 0) cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    const int quota = cpu_quota();
    if (quota && quota < cores) cores = quota;
    return cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : cores;
}

void start_threads() {
    if (thread_count == 0) thread_count = physical_cores();
    wanted.store(thread_count);
    for (; started < thread_count; started++) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, 8u << 20);
        const int failed = pthread_create(&thread, &attributes, work, (void *)(intptr_t)started);
        pthread_attr_destroy(&attributes);
        if (failed) break;
    }
}

}  // namespace

int pool_threads() {
    pthread_mutex_lock(&one_job);
    if (thread_count == 0) thread_count = physical_cores();
    const int count = thread_count;
    pthread_mutex_unlock(&one_job);
    return count;
}

void pool_set_threads(int count) {
    pthread_mutex_lock(&one_job);
    thread_count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
    wanted.store(thread_count);
    pthread_mutex_unlock(&one_job);
}

void pool_run(int tasks, PoolTask task, void *context) {
    if (tasks <= 0) return;
    pthread_mutex_lock(&one_job);
    if (thread_count == 0 || started < thread_count) start_threads();
    if (tasks == 1 || thread_count == 1) {
        for (int i = 0; i < tasks; i++) task(context, i, 0);
        pthread_mutex_unlock(&one_job);
        return;
    }
    job_task = task;
    job_context = context;
    finished.store(0);
    const uint64_t generation = (state.load() >> 44) + 1;
    state.store(generation << 44 | (uint64_t)tasks << 22);
    if (sleepers.load()) {
        wake.fetch_add(1);
        futex_wake(wake);
    }
    while (run_one(0)) {}
    const int64_t since = now_ns();
    for (uint32_t done; (done = finished.load()) != (uint32_t)tasks;) {
        pause_briefly();
        if (now_ns() - since < SPIN_NS) continue;
        caller_sleeps.store(1);
        if (finished.load() == done) futex_wait(finished, done);
        caller_sleeps.store(0);
    }
    pthread_mutex_unlock(&one_job);
}

void *scratch(size_t bytes) {
    static thread_local void *memory = nullptr;
    static thread_local size_t size = 0;
    if (bytes > size) {
        free(memory);
        size = (bytes + (1u << 16)) & ~(size_t)4095;
        memory = aligned_alloc(4096, size);
        if (!memory) abort();
    }
    return memory;
}
